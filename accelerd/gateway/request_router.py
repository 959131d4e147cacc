"""Decides which model a request goes to, whether it has the capability, and what its engine expects.

Asks the routing for names and for the choice among several, the scheduler for free models, the engines for
capabilities. Loads nothing, takes no lease.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from accelerd.base.errors import AccelError
from accelerd.config.model import ModelSpec, Route
from accelerd.config.variants import Variant
from accelerd.engines.base import Dialect, Engine, Task, Traits
from accelerd.engines.remote.remotes import Remotes
from accelerd.gateway.dialects.translation import Translation, translation_for
from accelerd.gateway.request_body import JsonBody
from accelerd.gateway.request_facts import RequestFacts, RequestInfo
from accelerd.gateway.responses import OWN_PATHS, TASKS, TOOLED, phrase
from accelerd.routing.balance import Balance
from accelerd.routing.choice import Decision, Elsewhere, Now, decide, known, placed
from accelerd.routing.directory import Directory
from accelerd.routing.health import Health, cools
from accelerd.routing.judge import Judge
from accelerd.routing.plan import Plan
from accelerd.routing.sessions import SessionMemory
from accelerd.routing.verdict import Verdict
from accelerd.scheduler.record import Snapshot
from accelerd.scheduler.service import Scheduler

CPU, NPU = "cpu", "npu"
RANKS: Final = {NPU: 0, "gpu": 2, CPU: 3, "": 2}  # kinds of devices, the most efficient first
INTEGRATED: Final = 1  # a GPU in the processor
ELSEWHERE: Final = 4
COOLDOWN: Final = Route("").cooldown  # s, of a model that no route says anything of

log = logging.getLogger(__name__)


class UpstreamTarget(Struct, frozen=True):
    """Where a request goes, and what the engine expects."""

    model: str
    path: str  # the engine's
    wire_name: str | None = None  # the engine's name of the model; None: `model` in the body stays as it is
    busy_statuses: frozenset[int] = frozenset()  # that mean: try again later
    hides_errors: bool = False  # an error may come with status 200
    misnamed: bool = False  # its answers may have another name of the model
    translation: Translation | None = None  # where the engine has not the API of the request
    routes: tuple[str, ...] = ()  # that have led here, the one that was asked for first
    variants: tuple[Variant, ...] = ()  # that these routes name: their edits come after the client's own variant's
    edit: Variant | None = None  # at last what the engine needs at this path


class RequestRouter:
    """Routes by one configuration at a time. `engines` is live: a reload replaces its items."""

    def __init__(
        self, scheduler: Scheduler, engines: Mapping[str, Engine], now: Callable[[], float], remotes: Remotes
    ) -> None:
        self._scheduler = scheduler
        self._engines = engines
        self._remotes = remotes
        self._usual: dict[tuple[str | None, str], UpstreamTarget] = {}  # (name, path) → target
        # The same of routes, by member, for as long as its model can do the same.
        self._favoured: dict[tuple[str | None, str, str], tuple[UpstreamTarget, Traits]] = {}
        self._balance = Balance()
        self._judge = Judge()
        self.directory = Directory()
        self.health = Health(now)
        self.sessions = SessionMemory[str]()  # by route and conversation the model that has answered last
        self.answered: dict[tuple[str, str], int] = {}  # by route and model
        self.waiting_inside: Callable[[str], int] = lambda model: 0  # how many requests wait in its engine
        self.integrated: Callable[[str], bool] = lambda device: False  # is it a GPU in the processor?

    def configure(
        self,
        models: Iterable[ModelSpec],
        routes: Iterable[Route],
        default: str | None = None,
        fallbacks: Sequence[str] = (),
    ) -> None:
        """Take over the names of a configuration."""
        self.reconsider()
        self._balance.clear()
        self._judge.configure()
        self.directory = Directory(models, routes, self.kind, default, fallbacks)
        self.health.keep(set(self.directory.models))
        names = self.directory.routes, self.directory.models
        self.answered = {key: n for key, n in self.answered.items() if key[0] in names[0] and key[1] in names[1]}

    def reconsider(self) -> None:
        """What was usual may be so no more: an engine that has started says what its model can do."""
        self._usual.clear()
        self._favoured.clear()

    def traits(self, spec: ModelSpec) -> Traits:
        """The model's capabilities as far as they are known."""
        return self._engines[spec.engine].traits(spec)

    def kind(self, spec: ModelSpec) -> str:
        """The kind of device that the model runs on: "npu", "gpu", "cpu", "" if unknown."""
        return self.traits(spec).device

    def dialect(self, spec: ModelSpec) -> Dialect:
        """How the model's engine answers."""
        return self._engines[spec.engine].dialect

    def variant(self, path: str, name: str | None) -> Variant | None:
        """The variant that is asked for; None for a model or a route itself. AccelError bad_request without a name."""
        if name is not None:
            return self.directory.variant(name)
        default = self.directory.default_variant
        return default if default is not None and self.unnamed(path) is self.directory.default else None

    def target(self, facts: RequestFacts) -> UpstreamTarget:
        """The target of a request. AccelError model_not_found, not_supported_by_model."""
        path, info, media = facts.path, facts.info, facts.media
        usual = self._usual.get((info.model, path))
        if usual is not None and not media:
            return usual
        found = self.unnamed(path) if info.model is None else self.directory.find(info.model)
        plan = self.directory.plan(found)
        several = len(plan.stages) > 1
        if isinstance(found, Route) or (several and self.health.why_not(found.name)):
            return self._of_several(plan, facts)
        try:
            target = self.target_of(found, path, info, media)
        except AccelError:
            if not several:
                raise
            return self._of_several(plan, facts)
        if not several and self._is_usual(target, facts, self.traits(found)):
            self._usual[info.model, path] = target
        return target

    def _is_usual(self, target: UpstreamTarget, facts: RequestFacts, traits: Traits) -> bool:
        """Do all requests by this name go there, as long as its model can do the same?"""
        name, path = facts.info.model, facts.path
        plain = target == UpstreamTarget(target.model, path, routes=target.routes, variants=target.variants)
        named = name is None or self.directory.is_name(name)  # never all names that match a pattern
        return named and plain and (TASKS[path] not in TOOLED or "tools" in traits.tasks)

    def _of_several(self, plan: Plan, facts: RequestFacts) -> UpstreamTarget:
        return self._at_once(plan, facts) or self._of_all(plan, facts)

    def _at_once(self, plan: Plan, facts: RequestFacts) -> UpstreamTarget | None:
        """The usual case, without a look at all the others: the first one is loaded, and nothing else is at work; or
        all are loaded between which it goes by weight."""
        if plan.favourite:
            return self._there(plan.favourite, plan.favourite, plan.way, plan.variants, facts)
        found = {one.called: self._there(one.name, one.called, plan.way, one.variants, facts) for one in plan.equals}
        if not found or None in found.values():
            return None
        draw = self._balance.next(plan.scope, [(one.called, one.weight) for one in plan.equals])
        self._balance.taken(draw)
        return found[draw.chosen]

    def _there(
        self, name: str, called: str, way: tuple[str, ...], variants: tuple[Variant, ...], facts: RequestFacts
    ) -> UpstreamTarget | None:
        """The target at this model, if the request could begin at once there, whatever the others do."""
        traits = self._free(name, facts)
        if traits is None:
            return None
        key = facts.info.model, facts.path, called
        favoured = self._favoured.get(key)
        if favoured is not None and favoured[1] is traits and not facts.media:
            return favoured[0]
        spec = self.directory.models[name]
        try:
            target = self.target_of(spec, facts.path, facts.info, facts.media, way, variants)
        except AccelError:  # it lacks a capability that another one may have
            return None
        if self._is_usual(target, facts, traits):
            self._favoured[key] = target, traits
        return target

    def _free(self, name: str, facts: RequestFacts) -> Traits | None:
        """What the model can do, if the request could begin at once there, whatever the others do."""
        spec = self.directory.models[name]
        if spec.elsewhere or not self._scheduler.alone(name) or self.waiting_inside(name) or self.health.why_not(name):
            return None
        traits = self.traits(spec)
        context = _context(spec, traits)
        return traits if context is None or not facts.exceeds(context) else None

    def _of_all(self, plan: Plan, facts: RequestFacts) -> UpstreamTarget:
        lacking = self._lacking(plan, facts)
        if all(name in lacking for name in plan.usual):
            raise self._none_can(plan, lacking, facts.path)
        return self._routed(plan, facts, _words(lacking, facts.path))

    def unnamed(self, path: str) -> ModelSpec | Route:
        """For no name: the default if it can, the only one, or the only one for the task. AccelError bad_request."""
        default, every = self.directory.default, self.directory.models.values()
        models = [spec for spec in every if not spec.offered] or list(every)
        if default is not None and any(map(self._can(path), self._models_of(default))):
            return default
        # Every model of llama-server has its own paths: that one is meant that generates.
        for asked in (path, "/completion") if TASKS[path] == "llama-server" else (path,):
            if len(models) > 1:
                models = list(filter(self._can(asked), models)) or models
        if len(models) != 1 and default is not None:
            return default
        if len(models) != 1:
            names = f"name one of {', '.join(spec.name for spec in models)}" if models else "no model is configured"
            raise AccelError("bad_request", "the request does not say which `model`", hint=names, param="model")
        return models[0]

    def _can(self, path: str) -> Callable[[ModelSpec], bool]:
        """Which models can be asked at this path, be it by translation."""
        return lambda spec: _serves(self.traits(spec), path)

    def _models_of(self, named: ModelSpec | Route) -> list[ModelSpec]:
        return [self.directory.models[name] for name in self.directory.plan(named).models]

    def plan(self, facts: RequestFacts) -> Plan | None:
        """How a request is answered that several models may answer."""
        name = facts.info.model
        try:
            found = self.unnamed(facts.path) if name is None else self.directory.find(name)
        except AccelError:  # the configuration has changed since
            return None
        plan = self.directory.plan(found)
        return plan if len(plan.models) > 1 or plan.route is not None else None

    def several(self, facts: RequestFacts) -> bool:
        """May more than one model answer?"""
        plan = self.plan(facts)
        return plan is not None and len(plan.models) > 1

    def another(self, facts: RequestFacts, failed: Mapping[str, str], *, ask: bool = True) -> UpstreamTarget | None:
        """The target at another model that may answer. `failed`: why these do not, by name.

        `ask`: it is going to be asked; else it is only a question whether there is one.
        """
        plan = self.plan(facts)
        if plan is None:
            return None
        lacking = {**_words(self._lacking(plan, facts), facts.path), **failed}
        if all(name in lacking for name in plan.reach(long=facts.too_long)):
            return None
        return self._routed(plan, facts, lacking, ask=ask)

    def others_able(self, facts: RequestFacts, failed: Mapping[str, str]) -> bool:
        """Would a request be answered now by a model other than these that `failed`?"""
        plan = self.plan(facts)
        if plan is None:
            return False
        looks = self._decide(plan, facts, {**_words(self._lacking(plan, facts), facts.path), **failed}).looks
        able = [look.model for look in looks if look.ahead is not None and not look.cools]
        contexts = [self.context(self.directory.models[name]) for name in able]
        return any(context is None or not facts.exceeds(context) for context in contexts)

    def _routed(
        self, plan: Plan, facts: RequestFacts, lacking: Mapping[str, str], *, ask: bool = True
    ) -> UpstreamTarget:
        decision = self._decide(plan, facts, lacking)
        context = self.context(self.directory.models[decision.model])
        if context is not None and facts.exceeds(context):
            longer = {**self._too_short(plan, facts.least_tokens()), **lacking}
            if len(longer) < len(plan.models):
                facts.too_long = True
                decision = self._decide(plan, facts, longer)
        if ask:
            for draw in decision.draws:
                self._balance.taken(draw)
        log.debug("%s is answered by %s: %s", plan.name, decision.model, decision.reason)
        spec = self.directory.models[decision.model]
        return self.target_of(spec, facts.path, facts.info, facts.media, decision.routes, decision.variants)

    def _too_short(self, plan: Plan, tokens: int) -> dict[str, str]:
        contexts = {name: self.context(self.directory.models[name]) for name in plan.models}
        return {
            name: f"takes {context} tokens, and the request has at least {tokens}"
            for name, context in contexts.items()
            if context is not None and context < tokens
        }

    def no_longer_than(self, facts: RequestFacts, model: str, tokens: int = 0) -> dict[str, str]:
        """Why models are not asked for what is too long for this one: those whose context is known, and no longer; or
        shorter than half of the `tokens` that its engine has counted, as another tokenizer may make fewer."""
        plan, spec = self.plan(facts), self.directory.models.get(model)
        least = max(tokens // 2, 1 + ((self.context(spec) if spec is not None else None) or 0))
        return self._too_short(plan, least) if plan is not None else {}

    def context(self, spec: ModelSpec) -> int | None:
        """Tokens that one request may have; None: that is not known before it is loaded."""
        return _context(spec, self.traits(spec))

    # --- outcomes -----------------------------------------------------------------------------------------------

    def succeeded(self, target: UpstreamTarget, facts: RequestFacts) -> None:
        """The engine has answered."""
        self.health.succeeded(target.model)
        for name in target.routes:
            self.answered[name, target.model] = self.answered.get((name, target.model), 0) + 1
            route = self.directory.routes.get(name)
            if route is not None and route.session_affinity:
                self.sessions.remember(name, facts.session(), target.model)

    def failed(self, target: UpstreamTarget, error: AccelError) -> None:
        """The request has failed there, or could not be answered."""
        if not cools(error):
            self.health.left(target.model)
            return
        route = self.directory.routes.get(target.routes[-1]) if target.routes else None
        self.health.failed(target.model, error, COOLDOWN if route is None else route.cooldown)

    def target_of(
        self,
        spec: ModelSpec,
        path: str,
        info: RequestInfo,
        media: Collection[Task] = (),
        routes: tuple[str, ...] = (),
        variants: tuple[Variant, ...] = (),
    ) -> UpstreamTarget:
        """The target, by what is known now; loading the model may change it. AccelError not_supported_by_model."""
        traits = self.traits(spec)
        missing = _missing(traits, path, info, media)
        if missing is not None:
            raise self._refusal(spec, missing, traits, path)
        dialect, translation = self.dialect(spec), translation_for(path, traits.tasks)
        path = path if translation is None else translation.engine
        return UpstreamTarget(
            spec.name,
            traits.paths.get(path, path),
            traits.wire_name,
            dialect.busy,
            dialect.masks_errors,
            traits.wire_name is not None or dialect.own_names,
            translation,
            routes,
            variants,
            traits.edits.get(path),
        )

    def decision(self, route: Route, facts: RequestFacts | None = None) -> Decision:
        """Which model of the route would answer a request now, if all have the capability."""
        return self._decide(self.directory.plan(route), facts or prompted(None), {})

    def verdict(self, route: Route, facts: RequestFacts) -> Verdict:
        """How much a request asks for, by a route with tiers."""
        if route.name not in facts.verdicts:
            facts.verdicts[route.name] = self._judge.verdict(route, facts.ask(), facts.session())
        return facts.verdicts[route.name]

    def _decide(self, plan: Plan, facts: RequestFacts, lacking: Mapping[str, str]) -> Decision:
        now = Now(
            known(self._scheduler.at_work_or(plan.models)),
            self._scheduler.placement,
            lacking,
            self.health.why_not,
            self._where,
            self._rank,
            self._elsewhere,
            lambda route: self.sessions.recall(route, facts.session()),
            lambda route: self.verdict(route, facts),
            self._balance,
            lambda name: bool(self._scheduler.displaced_by(name)),
            self.waiting_inside,
        )
        return decide(plan, now, long=facts.too_long)

    def _rank(self, snapshot: Snapshot) -> int:
        """The lower, the more efficient is what the model runs on."""
        if snapshot.spec.elsewhere:
            return ELSEWHERE
        kind = self.kind(snapshot.spec) or (CPU if snapshot.device == CPU else "gpu")
        return INTEGRATED if kind == "gpu" and all(map(self.integrated, placed(snapshot))) else RANKS[kind]

    def _elsewhere(self, snapshot: Snapshot) -> Elsewhere | None:
        if not (spec := snapshot.spec).elsewhere:
            return None
        known = self._remotes.known(spec.remote or "", spec.model or "")
        return Elsewhere() if known is None else Elsewhere(known.loaded, known.queue or 0)

    def _where(self, snapshot: Snapshot) -> frozenset[str]:
        """What it runs on. An engine may know of an NPU that was not detected; such a model does not run on the CPU."""
        if snapshot.spec.elsewhere:
            return frozenset()  # other models are not in its way
        if not snapshot.need.devices and snapshot.device == CPU and self.kind(snapshot.spec) == NPU:
            return frozenset((NPU,))
        return placed(snapshot)

    def _lacking(self, plan: Plan, facts: RequestFacts) -> dict[str, Task]:
        """The models of a route that cannot serve this, and what they lack."""
        path, info, media = facts.path, facts.info, facts.media
        traits = {name: self.traits(self.directory.models[name]) for name in plan.models}
        lacking = {name: _missing(known, path, info, media) for name, known in traits.items()}
        return {name: missing for name, missing in lacking.items() if missing is not None}

    def _none_can(self, plan: Plan, lacking: Mapping[str, Task], path: str) -> AccelError:
        text = "; ".join(f"{name} {why}" for name, why in _words(lacking, path).items())
        missing = lacking[plan.usual[-1]]
        return _unsupported(f"no model of {plan.name} supports this: {text}; {self._others(missing, path)}", missing)

    def _refusal(self, spec: ModelSpec, missing: Task, traits: Traits, path: str) -> AccelError:
        why = traits.why_not.get(missing) or f"{spec.engine} does not support it with this model"
        text = f"{spec.name} cannot {phrase(missing, path)}: {why}; {self._others(missing, path)}"
        return _unsupported(text, missing)

    def _others(self, missing: Task, path: str) -> str:
        """The configured models that have the capability."""
        specs = [spec for spec in self.directory.models.values() if not spec.offered]
        if missing in (TASKS[path], "llama-server"):
            able = [spec.name for spec in specs if _serves(self.traits(spec), path)]
        else:
            able = [spec.name for spec in specs if missing in self.traits(spec).tasks]
        return f"these models can: {', '.join(able)}" if able else "no configured model can"


def prompted(prompt: str | None) -> RequestFacts:
    """Of a request with this text, which belongs to no conversation."""
    return RequestFacts("", JsonBody(), body=msgspec.json.encode({"prompt": prompt}) if prompt is not None else b"")


def _context(spec: ModelSpec, traits: Traits) -> int | None:
    return spec.context if traits.context is None and isinstance(spec.context, int) else traits.context


def _serves(traits: Traits, path: str) -> bool:
    able = TASKS[path] in traits.tasks or translation_for(path, traits.tasks) is not None
    return able and (path not in OWN_PATHS or "llama-server" in traits.tasks)


def _missing(traits: Traits, path: str, info: RequestInfo, media: Collection[Task]) -> Task | None:
    task = TASKS[path]
    if not _serves(traits, path):
        return "llama-server" if task in traits.tasks else "chat" if task == "ollama" else task
    if task in TOOLED and "tools" not in traits.tasks and info.wants_tools():
        return "tools"
    return next((one for one in sorted(media) if one not in traits.tasks), None)


def _words(lacking: Mapping[str, Task], path: str) -> dict[str, str]:
    return {name: f"cannot {phrase(missing, path)}" for name, missing in lacking.items()}


def _unsupported(text: str, missing: Task) -> AccelError:
    param = "tools" if missing == "tools" else "model"
    return AccelError("not_supported_by_model", text, param=param, capability=missing)
