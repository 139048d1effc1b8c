"""From a trained network to one that is used."""

from shuffle_jax.deploy.harden import Diagnosis, Hardened, diagnose, diagnose_all, harden, recalibrate

__all__ = ["Diagnosis", "Hardened", "diagnose", "diagnose_all", "harden", "recalibrate"]
