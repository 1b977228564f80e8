"""SGLang on a machine without a GPU: platform, attention backend, kernels, video decoding."""
