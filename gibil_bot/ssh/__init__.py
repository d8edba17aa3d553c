"""One way onto every machine: SSH connections, commands, jobs and host keys."""
