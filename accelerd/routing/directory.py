"""Which names a request may use, and what each means: a model, or a route of several. Pure.

Made anew with every configuration and never changed. Beside what is configured every model answers to `npu/NAME` when
it runs on an NPU and to `local/NAME` otherwise, and one of a remote to `REMOTE/MODEL` and to `MODEL`, its name there,
unless somebody else has that name. Operations of people (`canonical`)
take no pattern and no names that only match one: a typing error would mean a model.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence

from accelerd.base.errors import AccelError
from accelerd.base.names import ANY
from accelerd.config.model import ModelSpec, Route
from accelerd.config.variants import Variant
from accelerd.routing.plan import Plan, plan_of

NPU, LOCAL = "npu/", "local/"
LATEST = ":latest"  # Ollama's name of a model without a tag means that one

KindOf = Callable[[ModelSpec], str]  # "npu", "gpu", "cpu", "" where it is not known


def nowhere(spec: ModelSpec) -> str:
    """The KindOf of a machine that nothing is known of."""
    return ""


class Directory:
    """The names of one configuration."""

    def __init__(
        self,
        models: Iterable[ModelSpec] = (),
        routes: Iterable[Route] = (),
        kind_of: KindOf = nowhere,
        default: str | None = None,
        fallbacks: Sequence[str] = (),
    ) -> None:
        """`fallbacks`: what answers where nothing that was asked for can."""
        self.models = {spec.name: spec for spec in models}
        self.routes = {route.name: route for route in routes}
        self._kind_of = kind_of
        every: list[ModelSpec | Route] = [*self.routes.values(), *self.models.values()]
        variants = [(variant, one) for one in every for variant in one.variants]
        aliases = {alias: one for one in every for alias in (*one.aliases, *one.hidden_aliases)}
        aliases |= {alias: one for variant, one in variants for alias in (variant.name, *variant.aliases)}
        self.variants = {alias: variant for variant, _ in variants for alias in (variant.name, *variant.aliases)}
        self._patterns = [
            (re.compile(".*".join(map(re.escape, alias.split(ANY)))), one, self.variants.get(alias))
            for alias, one in sorted(aliases.items(), key=lambda item: -len(item[0]))  # the most precise first
            if ANY in alias
        ]
        self._with_variants = any(variant is not None for _, _, variant in self._patterns)
        plain = {alias: one for alias, one in aliases.items() if ANY not in alias}
        self._named: dict[str, ModelSpec | Route] = {**self.routes, **plain, **self.models}
        self._there = _names_there(self.models.values())
        self._fallbacks = fallbacks
        self._plans: dict[str, Plan] = {}
        self.default = {**aliases, **self._named}.get(default) if default is not None else None
        self.default_variant = self.variants.get(default) if default is not None else None

    def plan(self, target: ModelSpec | Route) -> Plan:
        """How requests for it are answered."""
        if target.name not in self._plans:
            self._plans[target.name] = plan_of(target, self, self._fallbacks)
        return self._plans[target.name]

    def find(self, name: str) -> ModelSpec | Route:
        """What the name means to a client. AccelError model_not_found."""
        return self.meaning(name) or self._unknown(name)

    def meaning(self, name: str) -> ModelSpec | Route | None:
        """The same; None where it means nothing."""
        return self._named.get(name) or self._prefixed(name) or self._matching(name) or self._at_remote(name)

    def variant(self, name: str) -> Variant | None:
        """The variant that the name means to a client; None for the model or the route itself."""
        if name in self._named:
            return self.variants.get(name)
        if not self._with_variants or self._prefixed(name):
            return None
        matching = self._match(name)
        return matching[2] if matching is not None else None

    def is_name(self, name: str) -> bool:
        """Is it one of the names, and not one of those without end that match a pattern?"""
        return name in self._named or self._prefixed(name) is not None or self._at_remote(name) is not None

    def canonical(self, name: str) -> str:
        """The configured name of the model that is meant; one that is not known stays. AccelError for a route's."""
        found = self._named.get(name) or self._prefixed(name) or self._at_remote(name)
        if isinstance(found, Route):
            text = f"{name} is a route: name one of its models, {', '.join(self.plan(found).models)}"
            raise AccelError("bad_request", text, param="model")
        return found.name if found is not None else name

    def aliases(self, spec: ModelSpec) -> tuple[str, ...]:
        """Every other name that the model answers to: the configured ones, then the generated ones."""
        return (*spec.aliases, *filter(None, [self.generated(spec)]), *self.there(spec))

    def there(self, spec: ModelSpec) -> list[str]:
        """Those of a model of a remote by its name there."""
        return [name for name in _there(spec) if self.meaning(name) is spec and name != spec.name]

    def names(self) -> list[str]:
        """Every name, those of models first."""
        return [
            *self.models,
            *(name for name in self._named if name not in self.models),
            *filter(None, map(self.generated, self.models.values())),
            *self._there,
        ]

    def generated(self, spec: ModelSpec) -> str:
        """The name with its prefix; nothing where it has one already, the name is taken, or the model is elsewhere."""
        if spec.elsewhere or spec.name not in self.models or spec.name.startswith((NPU, LOCAL)):
            return ""
        name = (NPU if self._kind_of(spec) == "npu" else LOCAL) + spec.name
        return "" if name in self._named else name

    def _prefixed(self, name: str) -> ModelSpec | None:
        spec = self.models.get(name.partition("/")[2])
        return spec if spec is not None and self.generated(spec) == name else None

    def _at_remote(self, name: str) -> ModelSpec | None:
        there = self._there
        return there.get(name) or there.get(name + LATEST) or there.get(name.removesuffix(LATEST))

    def _matching(self, name: str) -> ModelSpec | Route | None:
        found = self._match(name)
        return found[1] if found is not None else None

    def _match(self, name: str) -> tuple[re.Pattern[str], ModelSpec | Route, Variant | None] | None:
        if not name.isprintable():
            return None  # as a name that is configured must be
        return next((one for one in self._patterns if one[0].fullmatch(name)), None)

    def _unknown(self, name: str) -> ModelSpec | Route:
        close = difflib.get_close_matches(name, self.names(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; see GET /v1/models"
        raise AccelError("model_not_found", f"there is no model {name!r}{hint}", param="model")


def _there(spec: ModelSpec) -> tuple[str, ...]:
    """Names of a model of a remote by what it is called there."""
    return (f"{spec.remote}/{spec.model}", spec.model or "") if spec.elsewhere else ()


def _names_there(models: Iterable[ModelSpec]) -> dict[str, ModelSpec]:
    """Of several with one name it is the first one's."""
    found: dict[str, ModelSpec] = {}
    for spec in models:
        for name in _there(spec):
            found.setdefault(name, spec)
    return found
