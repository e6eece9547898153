"""Where this user's things are kept, by peers and by monitors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from swarm.errors import ConfigError

DATA_ENV: Final = "BARNRAISE_DATA"  # another place for everything that is kept; tests and the demo use it


def data_folder() -> Path:
    """The folder that BARNRAISE_DATA names, or the user's data folder. Raises ConfigError when neither is known."""
    if named := os.environ.get(DATA_ENV):
        return Path(named)
    import platformdirs

    try:
        return platformdirs.user_data_path("barnraise")
    except RuntimeError:  # neither HOME nor the system's table of users names a folder
        raise ConfigError(
            f"HOME names no folder, so there is no place for what is kept; set it, or {DATA_ENV}"
        ) from None
