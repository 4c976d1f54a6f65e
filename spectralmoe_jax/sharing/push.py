"""`spectralmoe push`: publish a trained run on the Hugging Face hub, or write the folder that would be.

The folder holds model.safetensors, which carries its configuration, config.json and a model card.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants

from spectralmoe_jax import __version__
from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.config.given import config_dict
from spectralmoe_jax.config.published import without_folders
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.config.stored import CHECKPOINTS, read_run_config
from spectralmoe_jax.conversion.export import convert_trained
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.evaluate import checkpoint_steps, evaluate_best_checkpoint
from spectralmoe_jax.evaluation.metrics import read_images
from spectralmoe_jax.evaluation.stored_scores import IMAGES_FILE, read_evaluation
from spectralmoe_jax.part_files import scratch_folder
from spectralmoe_jax.sharing.model_card import LIBRARY, Facts, write_model_card
from spectralmoe_jax.weights.hub import CONFIG, HUB, WEIGHTS, is_reachable
from spectralmoe_jax.weights.reading import manifest, open_weight_file
from spectralmoe_jax.weights.writing import atomic_create, require_absent

CARD = "README.md"
_TARGET = re.compile(HUB + r"(?P<repository>[\w.-]+/[\w.-]+)")


def push(
    run: str | os.PathLike[str],
    target: str,
    *,
    licence: str,
    private: bool = False,
    message: str | None = None,
    overwrite: bool = False,
    evaluate: bool = False,
    dry_run: str | os.PathLike[str] | None = None,
    allow_code: bool = False,
) -> str:
    """Publish the best checkpoint of a run; `load(target)` then gives the same predictions to the bit.

    Paths of this machine are cut to their last part in what is published, and addresses to what is no secret;
    see `config.published`.

    Args:
      run: folder of the run.
      target: `hf://owner/name`.
      licence: of what was trained, such as apache-2.0. The card says beside it under which terms the weights
        of the encoders in the file are, where their format is known.
      private: create a private repository; one that exists must be private.
      message: of the commit.
      overwrite: commit to a repository that exists.
      evaluate: score the checkpoint on the target images first, for the card.
      dry_run: folder to write in place of the upload; it must not exist.
      allow_code: whether the run's configuration may name code, as in `inference.model.load`.

    Returns:
      One line that describes what was done.

    Raises:
      UserError: the run cannot be read, a name is malformed, or the hub refuses; nothing is published then.
    """
    # 1. fail on what is wrong before anything slow
    repository, folder = _repository(target), Path(run)
    if not licence.strip() or len(licence.splitlines()) != 1:
        raise UserError("--licence: give one name, such as apache-2.0 or cc-by-4.0")
    if not (folder / CHECKPOINTS).is_dir():
        raise UserError(f"{run}: is no folder of a run; give one that `spectralmoe train` wrote")
    config = read_run_config(folder, allow_code=allow_code)
    hub = None
    if dry_run is None:
        hub = _open_hub(repository, private, overwrite)
    else:
        require_absent(Path(dry_run))

    # 2. scores
    if evaluate:
        evaluate_best_checkpoint(folder, config)

    # 3. the folder, and its upload
    if hub is None:
        assert dry_run is not None
        with atomic_create(Path(dry_run)) as temporary:
            write_folder(temporary, folder, config, repository, licence)
        return f"{dry_run}: what would be {target}; nothing was uploaded"
    with scratch_folder() as scratch:
        written = scratch / "model"
        write_folder(written, folder, config, repository, licence)
        text = message or f"Checkpoint of {config.name}, by {LIBRARY} {__version__}"
        return f"{target}: {_upload(hub, repository, written, private, text, overwrite)}"


def write_folder(folder: Path, run: Path, config: RunConfig, repository: str, licence: str) -> None:
    """Write the folder that is uploaded.

    Args:
      folder: the folder, which is created.
      run: folder of the run.
      config: its configuration.
      repository: owner/name.
      licence: of what was trained.

    Raises:
      UserError: the run has no checkpoint, or a stored evaluation of another one.
    """
    # 1. what the card says of the checkpoint
    step, last = checkpoint_steps(run, config)
    if step is None or last is None:
        raise UserError(f"{run}: holds no checkpoint yet; train first")
    with CheckpointStore(run, config) as store:
        held_out, average = store.metrics_of(step), store.decay_of(step)
    evaluation = read_evaluation(run)
    if evaluation is not None and evaluation.get("step") != step:
        raise UserError(
            f"{run}: its scores on the target are of step {evaluation.get('step')}, and the best checkpoint "
            f"is of step {step}: add --evaluate"
        )

    # 2. weights, with their configuration
    folder.mkdir()
    convert_trained(str(run), folder / WEIGHTS, "safetensors", config, edit=without_folders)
    shown = without_folders(json.loads(json.dumps(config_dict(config.given).to_dict())))
    record = {"library_name": LIBRARY, "version": __version__, "configuration": shown}
    (folder / CONFIG).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    # 3. the card
    images = read_images(run / IMAGES_FILE) if evaluation is not None else ()
    origin = manifest(open_weight_file(folder / WEIGHTS))
    facts = Facts(
        repository, licence, config, shown, origin, step, last, average, held_out, evaluation, images
    )
    (folder / CARD).write_text(write_model_card(facts), encoding="utf-8")


def _repository(target: str) -> str:
    """Return owner/name of `hf://owner/name`."""
    match = _TARGET.fullmatch(target)
    if match is None:
        raise UserError(f"{target}: write {HUB}owner/name, without a revision or a file")
    return match["repository"]


def _open_hub(repository: str, private: bool, overwrite: bool) -> Any:
    """Return the client of the hub, once it accepts the name.

    Raises:
      UserError: there is no token or no network, or the repository exists, or is public and must not be.
    """
    token = huggingface_hub.get_token()
    if token is None:
        raise UserError(
            f"{HUB}{repository}: no token of the hub: set HF_TOKEN or run `hf auth login`, or write the "
            "folder with --dry-run DIR"
        )
    if constants.HF_HUB_OFFLINE or not is_reachable(huggingface_hub.hf_hub_url(repository, CARD)):
        raise UserError(f"{HUB}{repository}: the hub is out of reach; write the folder with --dry-run DIR")
    hub = huggingface_hub.HfApi(token=token)
    if _asked(repository, lambda: hub.repo_exists(repository)):
        if not overwrite:
            raise UserError(
                f"{HUB}{repository}: exists already; choose another name, or add --overwrite for a new commit"
            )
        if private:
            _require_private(hub, repository)
    return hub


def _require_private(hub: Any, repository: str) -> None:
    """Raise a UserError if a repository is public, which creating it once more does not change."""
    if not _asked(repository, lambda: hub.repo_info(repository)).private:
        raise UserError(
            f"{HUB}{repository}: is public; make it private on the hub, choose another name, or leave out "
            "--private"
        )


def _upload(hub: Any, repository: str, folder: Path, private: bool, message: str, overwrite: bool) -> str:
    """Create the repository where needed, commit the folder, and return the address of the commit."""
    _asked(repository, lambda: hub.create_repo(repository, private=private, exist_ok=overwrite))
    if private:
        _require_private(hub, repository)
    commit = {"repo_id": repository, "folder_path": folder, "commit_message": message}
    advice = "; the same command with --overwrite tries again"  # the repository exists now
    return str(_asked(repository, lambda: hub.upload_folder(**commit), advice).commit_url)


def _asked(repository: str, request: Callable[[], Any], advice: str = "") -> Any:
    """Send a request to the hub, whose client raises errors of several HTTP libraries.

    Raises:
      UserError: it failed.
    """
    try:
        return request()
    except Exception as problem:
        reason = " ".join(str(problem).split())[:200] or type(problem).__name__
        raise UserError(f"{HUB}{repository}: the hub refused ({reason}){advice}") from None
