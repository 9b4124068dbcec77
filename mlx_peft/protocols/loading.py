"""Names turned into code: the table of what is loaded by its name, so that nothing above imports a framework.

Only the two packages that a notebook imports, ``mlx_peft`` and ``torch_ref``, say themselves where their names are.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any, cast

from mlx_peft.core.errors import UserError
from mlx_peft.protocols.backend import Backend
from mlx_peft.protocols.measured import Contender, PeerOfBanks
from mlx_peft.protocols.tools import Exporter, Foreign, Loaders

if TYPE_CHECKING:  # most that is loaded here asks for no library
    from mlx_peft.config.schema import Experiment
    from mlx_peft.library.library import Library

BACKENDS = {"mlx": "mlx_peft.backend.entry", "torch": "torch_ref.entry"}
"""The modules of the backends, by the name that an experiment gives."""
LIBRARIES = {"mlx": "mlx_peft.backend.library", "torch": "torch_ref.library"}
"""The modules of their libraries."""
EXPORTERS = {"onnx": "torch_ref.tools.export.onnx", "coreml": "torch_ref.tools.export.coreml"}
"""The modules that export a model, by the kind of file that they write."""
EXPORTS_NEED = {"onnx": ("torch", "onnx", "onnxruntime", "onnxscript"), "coreml": ("torch", "coremltools")}
"""The packages that these modules import."""
PEERS = {"peft": "torch_ref.tools.peer"}
"""The modules of other libraries that are timed beside the backends."""
PEERS_OF_BANKS = {"peft": "torch_ref.tools.peer_bank"}
"""The modules of other libraries whose mixed batches are timed beside a bank's."""
FOREIGN = "torch_ref.tools.foreign"
LOADERS = "torch_ref.tools.loader"

INSTALL = {"mlx": "pip install mlx-peft", "torch": "pip install 'mlx-peft[torch]'"}
INSTALL_EXPORT = "pip install 'mlx-peft[export]'"


def load_backend(name: str) -> Backend:
    """The backend of a name. Raises UserError where its framework is not installed."""
    try:
        return cast(Backend, importlib.import_module(BACKENDS[name]))
    except ImportError as error:
        raise UserError(f"the {name} backend cannot be loaded ({error}); install it with: {INSTALL[name]}") from error


def backend_of(experiment: Experiment) -> Backend:
    """The backend of an experiment, on its device. Raises UserError where either is not here."""
    backend = load_backend(experiment.backend)
    backend.use(experiment.device)
    return backend


def load_library(name: str) -> Library[Any]:
    """The library of a backend. Raises UserError where its framework is not installed."""
    load_backend(name)
    return cast("Library[Any]", importlib.import_module(LIBRARIES[name]).LIBRARY)


def must_have_exporter(kind: str) -> None:
    """Raises UserError where packages that a kind of file needs are not installed. None of them is loaded."""
    if missing := [name for name in EXPORTS_NEED[kind] if importlib.util.find_spec(name) is None]:
        raise UserError(f"exporting to {kind} needs packages that are missing ({', '.join(missing)}): {INSTALL_EXPORT}")


def load_exporter(kind: str) -> Exporter:
    """What writes a kind of file. Raises UserError where the packages that it needs are not installed."""
    try:
        return cast(Exporter, importlib.import_module(EXPORTERS[kind]))
    except ImportError as error:
        raise UserError(f"exporting to {kind} needs packages that are missing ({error}): {INSTALL_EXPORT}") from error


def load_contender(name: str) -> Contender:
    """A backend or a peer, by its name. Raises ImportError where its packages are not installed."""
    return cast(Contender, importlib.import_module({**BACKENDS, **PEERS}[name]))


def load_peer_of_banks(name: str) -> PeerOfBanks:
    """A library with many adapters on one model, by its name. Raises ImportError where it is not installed."""
    return cast(PeerOfBanks, importlib.import_module(PEERS_OF_BANKS[name]))


def load_foreign() -> Foreign:
    """What opens files as their own libraries do. Raises ImportError where torch is not installed."""
    return cast(Foreign, importlib.import_module(FOREIGN))


def load_loaders() -> Loaders:
    """What makes torch's DataLoader. Raises ImportError where torch or torchvision is not installed."""
    return cast(Loaders, importlib.import_module(LOADERS))
