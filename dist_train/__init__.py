"""The training job: blind image quality assessment with HyperIQA, the same on any number of processes."""
