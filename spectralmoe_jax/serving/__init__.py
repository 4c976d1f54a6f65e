"""Maps over HTTP: one loaded model behind a bounded queue."""

from importlib.util import find_spec

from spectralmoe_jax.errors import UserError

if any(find_spec(library) is None for library in ("fastapi", "uvicorn")):
    raise UserError("serving needs FastAPI and uvicorn: pip install 'spectralmoe-jax[serve]'")
