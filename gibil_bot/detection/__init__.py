"""What a project's own files say about preparing, testing and linting it. Pure: files in, facts and tasks out."""
