"""From a trained network to one that is used: hardened, folded, exported.

The modules are imported one by one: :mod:`shuffle_jax.deploy.exported` runs an exported network with JAX alone.
"""
