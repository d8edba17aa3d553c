"""Shell programs that run on machines, and the functions that fill in their placeholders."""
