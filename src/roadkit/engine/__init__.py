"""The embedded engine: request → scheduler → runner → bank and kernels → stream."""
