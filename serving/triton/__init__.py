"""Triton Inference Server: the model repository that it serves, and the model in it, which calls the data plane.

python -m serving triton model_store/mnist-mda/1 --repository models
tritonserver --model-repository=models
"""
