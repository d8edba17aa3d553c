"""Where the work is done: machines, and the way onto them."""
