"""The form of jupyterhub-fancy-profiles before a spawner that has no profiles of its own, such as DockerSpawner.

It is made for KubeSpawner, which has all of this itself: `c.KubeSpawner.profile_list` and `setup_ui(c)` are enough there.
Here the same list is shown, and the image that somebody has picked or built becomes the spawner's `image`.
"""

import re
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader
from jupyterhub_fancy_profiles import TEMPLATE_PATHS, setup_ui
from tornado.web import HTTPError

Profile = dict[str, Any]

PICKED: Final = "picked"
"""Among the options of a server: the name of a choice. Not `image`, which DockerSpawner would take as an image's name."""
BUILT: Final = "built"
"""Among the options of a server: the name of an image that was built, or typed in."""


class Profiles:
    """What people choose from, and what becomes of their choice."""

    def __init__(self, profiles: list[Profile], *, built: str) -> None:
        """Take a list as KubeSpawner has it, and a regular expression for the whole name of an image that was built.

        Of each profile's options only `image` counts, and of each choice's override only `image`. The first profile
        is the default. Anybody can send any name to the hub: what does not match is never started.
        """
        self._profiles = {profile["slug"]: profile for profile in profiles}
        self._built = re.compile(built)
        environment = Environment(loader=FileSystemLoader(TEMPLATE_PATHS), autoescape=True)
        # The order is the operator's.
        environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
        self._form = environment.get_template("form.html").render(profile_list=profiles)

    def install(self, c: Any) -> None:
        """Enter it into a JupyterHub's configuration; nothing else of the spawner is changed."""
        setup_ui(c)
        c.Spawner.options_form = self._form
        c.Spawner.options_from_form = self.read
        c.Spawner.apply_user_options = self.apply

    def read(self, form: dict[str, list[str]]) -> dict[str, str]:
        """Return the options of a server from what the form sends."""
        slug = form.get("profile", [""])[0]
        image = f"profile-option-{slug}--image"
        fields = {"profile": "profile", PICKED: image, BUILT: f"{image}--unlisted-choice"}
        options = {name: form[field][0] for name, field in fields.items() if form.get(field)}
        if options.get(BUILT):
            # Beside it the field of the choices says only that none of them is meant.
            options.pop(PICKED, None)
        return options

    def apply(self, spawner: Any, options: dict[str, Any]) -> None:
        """Let the spawner start what is chosen. Raises HTTPError with words for the person who has chosen."""
        spawner.image = self.image(options)

    def image(self, options: dict[str, Any]) -> str:
        """Return the image that these options mean. Raises HTTPError for none that may be started."""
        profile = self._profiles.get(options.get("profile") or next(iter(self._profiles)))
        if profile is None:
            raise HTTPError(400, "There is no such profile.")
        option = profile["profile_options"]["image"]
        if built := options.get(BUILT):
            if not option.get("unlisted_choice", {}).get("enabled") or not self._built.fullmatch(str(built)):
                raise HTTPError(400, "This image was not built for this hub.")
            return str(built)
        choices = option["choices"]
        default = next(
            (name for name, choice in choices.items() if choice.get("default")), next(iter(choices))
        )
        choice = choices.get(options.get(PICKED) or default)
        if choice is None:
            raise HTTPError(400, "There is no such image.")
        return str(choice["kubespawner_override"]["image"])
