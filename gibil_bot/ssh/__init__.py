"""SSH access to every machine: connections, commands, jobs and host keys."""
