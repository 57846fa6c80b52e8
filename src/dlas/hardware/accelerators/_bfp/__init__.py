"""Products of ggml's block formats: datapath, unpackers, driver, cycle model and the look at whole language models."""
