"""The model proxy: the only process that holds the models' keys. Machines reach it with a token that ends with their task."""
