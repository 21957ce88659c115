"""The form of jupyterhub-fancy-profiles for a spawner without profiles, such as DockerSpawner.

The form is made for KubeSpawner, where `c.KubeSpawner.profile_list` and `setup_ui(c)` are enough. Here the same list is
shown, and the image that the user chose or built becomes the spawner's `image`.
"""

import re
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader
from jupyterhub_fancy_profiles import TEMPLATE_PATHS, setup_ui
from tornado.web import HTTPError

Profile = dict[str, Any]

PICKED: Final = "picked"
"""Server option: the name of a choice. Not called `image`, which DockerSpawner would take as an image's name."""
BUILT: Final = "built"
"""Server option: the name of an image that was built, or typed in."""


class Profiles:
    """The profiles of the spawn form, and the image that a choice stands for."""

    def __init__(self, profiles: list[Profile], *, built: str) -> None:
        """Take a list in KubeSpawner's format, and a regular expression for whole names of built images.

        Only the option `image` of each profile is used, and only `image` of each choice's override. The first profile
        is the default. Users can send any name to the hub; a name that does not match is never started.
        """
        self._profiles = {profile["slug"]: profile for profile in profiles}
        self._built = re.compile(built)
        environment = Environment(loader=FileSystemLoader(TEMPLATE_PATHS), autoescape=True)
        # Keep the operator's order.
        environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
        self._form = environment.get_template("form.html").render(profile_list=profiles)

    def install(self, c: Any) -> None:
        """Set the form in a JupyterHub's configuration."""
        setup_ui(c)
        c.Spawner.options_form = self._form
        c.Spawner.options_from_form = self.read
        c.Spawner.apply_user_options = self.apply

    def read(self, form: dict[str, list[str]]) -> dict[str, str]:
        """Return the server options from the submitted form."""
        slug = form.get("profile", [""])[0]
        image = f"profile-option-{slug}--image"
        fields = {"profile": "profile", PICKED: image, BUILT: f"{image}--unlisted-choice"}
        options = {name: form[field][0] for name, field in fields.items() if form.get(field)}
        if options.get(BUILT):
            # The field of the choices then holds only the marker that none of them is chosen.
            options.pop(PICKED, None)
        return options

    def apply(self, spawner: Any, options: dict[str, Any]) -> None:
        """Set the spawner's image. Raises HTTPError with a message for the user."""
        spawner.image = self.image(options)

    def image(self, options: dict[str, Any]) -> str:
        """Return the image for server options. Raises HTTPError if it may not be started."""
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
