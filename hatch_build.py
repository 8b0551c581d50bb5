"""Put the data folders into the wheel.

Static `force-include` would also copy them beside an editable install, where they go stale and the bare
`sciJEPA/` folder in site-packages hides the real package. So: in a real wheel only.
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DataFolders(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        for folder in ("configs", "datasets"):
            build_data["force_include"][folder] = f"sciJEPA/_data/{folder}"
