"""The SDK. Programs import it as the package `gibil` (site/gibil); README.md has examples, and compares it with others."""
