"""Lightning Fabric, without torchmetrics: it imports that for a part that nobody uses here, and seconds of every start go by."""

import sys

is_hidden = "torchmetrics" not in sys.modules
if is_hidden:
    sys.modules["torchmetrics"] = None  # importing it fails, as where it is not installed
try:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
finally:
    if is_hidden:
        del sys.modules["torchmetrics"]

__all__ = ["ClusterEnvironment", "Fabric", "SLURMEnvironment", "TorchElasticEnvironment"]
