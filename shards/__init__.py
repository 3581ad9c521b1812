"""The data on disk: photographs and opinions in, WebDataset shards with fixed lossless patches out."""
