"""The AR and NAR models as PyTorch modules. The eager reference for every exported graph."""
