"""ONNX files of networks: :mod:`shuffle_jax.deploy.onnx.write`, and run: :mod:`shuffle_jax.deploy.onnx.run`.

The packages are those of the extra ``onnx``; nothing else of the library imports them.
"""
