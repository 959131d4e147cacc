"""When other programs need the memory that models hold: which pool is short, by how much, and how urgent it is.

Pure: is given what was seen and the books, answers with orders; who leaves is the scheduler's to choose. Thresholds are
those of kubelet's eviction: a soft one that must hold for a grace, a hard one that acts at once, a least amount so that
it does not nibble, and a pause until the effect of an order is seen. What models hold within their reservations never
causes an order: only growth does, of others or of models beyond what was reserved. Sizes are bytes, times seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct, field

from accelerd.base.sizes import human_size
from accelerd.config.machine_settings import MemorySettings
from accelerd.memory.ledger import Balance, PoolHolding
from accelerd.memory.model import RAM, MemorySnapshot, Stall

NOISE: Final = 16  # a shortage of less than this part of the reserve is what the reserve is for
LEAST: Final = 256 << 20  # to be free beyond the reserve afterwards …
SHARE: Final = 20  # … or this part of the pool, whichever is more
EFFECT: Final = 5.0  # after an order, unless its effect is seen before
SETTLED: Final = 0.5  # … or all who were to leave have gone, and brought less than was thought
WORTH_SAYING: Final = 64 << 20
STALL_FULL: Final = 10.0  # % of 10 s in which nobody could go on
STALL_SOME: Final = 40.0  # % of 10 s in which somebody could not
STALL_PAUSE: Final = 15.0  # averages of 10 s tell of what was before

STAYS: Final = ("loading", "resident", "asleep")  # its memory is not on its way back
RETURNS: Final = ("leaving", "reclaiming")


class RoomOrder(Struct, frozen=True):
    pool: str  # the one that is short; what it backs can help it
    size: int  # bytes that shall come back, with those that are on their way; never more than models hold of it
    why: str  # with the arithmetic
    hard: bool  # models in use make room too


class _PoolState(Struct):
    calm: int | None = None  # others' use when there was room for all that is reserved, or less
    reserved: Mapping[tuple[str, str], int] = field(default_factory=dict)  # at that time, by pool and model
    short_since: float | None = None
    doubted: bool = False  # the hard threshold was passed at the last look, which may have been a blink
    loaded: float | None = None  # when a model was seen loading last
    stalled: float | None = None  # when an order was given for a stall last
    ordered: float | None = None  # when an order was given whose effect is waited for
    urgent: bool = False  # it was a hard one
    ours: int = 0  # our use when it was given
    coming: int = 0  # what it was promised to bring
    pressed: bool = False  # an order was given, and there has not been room since
    calm_since: float | None = None


class _PoolFigures(Struct, frozen=True):
    """One pool in bytes, with what lies in it of others that it backs."""

    balance: Balance
    ours: int
    reserved: Mapping[tuple[str, str], int]  # by pool and model, or what it takes where that is more
    coming: int  # of `ours`, what is on its way back
    movable: int  # of `ours`, what is not on its way and could be
    loading: bool
    unsettled: bool  # models come or go: what is theirs may look like somebody else's for a moment

    @property
    def free(self) -> int:
        return self.balance.pool.capacity - self.balance.foreign - self.ours

    @property
    def shortage(self) -> int:
        return self.balance.pool.reserve - self.free

    @property
    def least(self) -> int:
        """Bytes beyond the reserve that an order aims at."""
        capacity = self.balance.pool.capacity
        return max(capacity // SHARE, min(LEAST, capacity // 8))


class Pressure:
    """Is given one snapshot after the other, in the order of time."""

    def __init__(self, settings: MemorySettings) -> None:
        self._settings = settings
        self._states: dict[str, _PoolState] = {}

    def configure(self, settings: MemorySettings) -> None:
        self._settings = settings

    def look(self, seen: MemorySnapshot, balances: Sequence[Balance], now: float) -> tuple[RoomOrder, ...]:
        """What shall make room now. Each order must be answered."""
        books = {balance.pool.id: balance for balance in balances}
        self._states = {id: self._states.get(id) or _PoolState() for id in books}
        found = [self._pool(_figures(balance, books), seen, now) for balance in balances]
        return tuple(order for order in found if order is not None)

    def answered(self, order: RoomOrder, coming: int) -> None:
        """The order is carried out: so many bytes will come back. 0: no model can leave now."""
        if order.pool in self._states:
            self._states[order.pool].coming = coming

    @property
    def pressed(self) -> tuple[str, ...]:
        """The pools in which models had to make room and that have none to spare since."""
        return tuple(id for id, state in self._states.items() if state.pressed)

    @property
    def calm_since(self) -> float | None:
        """Since when no pool is pressed; None: one is, or there was no look yet."""
        times = [state.calm_since for state in self._states.values()]
        known = [time for time in times if time is not None]
        return max(known) if known and len(known) == len(times) else None

    # --- one pool ---------------------------------------------------------------------------------------------

    def _pool(self, figures: _PoolFigures, seen: MemorySnapshot, now: float) -> RoomOrder | None:
        pool, foreign = figures.balance.pool, figures.balance.foreign
        state = self._states[pool.id]
        if figures.loading:
            state.loaded = now
        stalled = self._stalls(figures, state, seen.stall, now)
        if figures.shortage <= 0 and not stalled:
            state.pressed = False
        if not state.pressed and state.calm_since is None:
            state.calm_since = now
        if (figures.balance.free >= 0 and figures.shortage <= 0) or not figures.movable:
            state.calm, state.reserved = foreign, figures.reserved
        elif state.calm is not None:
            state.calm = min(state.calm, foreign)
        if figures.shortage <= 0:
            state.short_since, state.doubted = None, False
        if not figures.movable or (figures.shortage <= 0 and not stalled):
            return None
        before = state.calm or 0
        grown = sum(max(0, size - state.reserved.get(key, size)) for key, size in figures.reserved.items())
        due = min(figures.shortage, max(0, foreign - before) + grown)
        urgent, soft = self._thresholds(figures, state, due, now)
        urgent = urgent or stalled
        if not (urgent or soft) or self._waits(figures, state, urgent, now):
            return None
        size = pool.reserve + figures.least - figures.free
        if stalled:
            size = max(size, figures.least)
        if size <= figures.coming:
            return None
        state.ordered, state.urgent, state.ours, state.coming = now, urgent, figures.ours, 0
        state.pressed, state.calm_since = True, None
        if stalled:
            state.stalled = now
        most = figures.coming + figures.movable
        return RoomOrder(pool.id, min(size, most), _why(figures, before, grown, seen, stalled), urgent)

    def _thresholds(self, figures: _PoolFigures, state: _PoolState, due: int, now: float) -> tuple[bool, bool]:
        """(hard, soft): is it passed, and for long enough?"""
        reserve = figures.balance.pool.reserve
        if due <= reserve // NOISE:
            state.doubted = False
            return False, False
        if state.short_since is None:
            state.short_since = now
        below = figures.free < reserve / 2
        hard = below and (state.doubted or not figures.unsettled)
        state.doubted = below
        return hard, now - state.short_since >= self._settings.soft_grace

    def _stalls(self, figures: _PoolFigures, state: _PoolState, stall: Stall | None, now: float) -> bool:
        """Are programs waiting for this memory?

        Not while a model is loaded, which makes the loader wait for the disk; nor with memory to spare: then some
        program has come to a limit of its own, and no model's leaving would help it.
        """
        pool = figures.balance.pool
        if pool.id != RAM or stall is None or (stall.full < STALL_FULL and stall.some < STALL_SOME):
            return False
        if any(past is not None and now - past < STALL_PAUSE for past in (state.loaded, state.stalled)):
            return False
        return figures.free < max(2 * pool.reserve, pool.capacity // SHARE)

    def _waits(self, figures: _PoolFigures, state: _PoolState, urgent: bool, now: float) -> bool:
        """Is the effect of an order still to be seen? What has become urgent since does not wait for it."""
        if state.ordered is None or now - state.ordered >= EFFECT or (urgent and not state.urgent):
            return False
        gone = figures.coming == 0 and now - state.ordered >= SETTLED
        if state.coming and (gone or figures.ours <= state.ours - state.coming):
            state.ordered = None
            return False
        return True


def _figures(balance: Balance, books: Mapping[str, Balance]) -> _PoolFigures:
    """The pool as it is, not as it was reserved."""
    backed = [one for one in books.values() if one.pool.backed_by == balance.pool.id]
    spilled = max(0, balance.spilled + sum(_use(h) - h.size for one in backed for h in one.holdings))
    if not balance.spilled:
        spilled = 0
    inside = [balance, *(backed if spilled else ())]
    everything = [(one.pool.id, held) for one in inside for held in one.holdings]
    staying = sum(_sum(one.holdings, STAYS) for one in backed)
    returning = sum(_sum(one.holdings, RETURNS) for one in backed)
    return _PoolFigures(
        balance=balance,
        ours=sum(map(_use, balance.holdings)) + spilled,
        reserved={(id, h.model): max(h.size, h.used or 0) for id, h in everything if h.phase in STAYS},
        coming=_sum(balance.holdings, RETURNS) + min(spilled, returning),
        movable=_sum(balance.holdings, STAYS) + min(spilled, staying),
        loading=any(h.phase == "loading" for one in books.values() for h in one.holdings),
        unsettled=any(h.phase in ("loading", "reclaiming") for _, h in everything),
    )


def _use(held: PoolHolding) -> int:
    """What it takes: all that it may take while it loads, then what was seen."""
    if not held.used or held.phase in ("reclaiming", "lost"):
        return held.size
    return max(held.size, held.used) if held.phase == "loading" else held.used


def _sum(holdings: Iterable[PoolHolding], phases: Sequence[str]) -> int:
    return sum(_use(held) for held in holdings if held.phase in phases)


def _why(figures: _PoolFigures, before: int, grown: int, seen: MemorySnapshot, stalled: bool) -> str:
    balance = figures.balance
    pool, more = balance.pool, balance.foreign - before
    others = f"others use {human_size(balance.foreign)}"
    if before and more > 0:
        others += f" ({human_size(more)} more than when there was room)"
    most = next((user for user in seen.foreign if user.pool == pool.id), None)
    if most is not None and most.size <= balance.foreign:
        others += f", {most.process} alone {human_size(most.size)}"
    ours = f"models {human_size(figures.ours)}"
    if grown >= WORTH_SAYING:
        ours += f", {human_size(grown)} more than was reserved for them"
    text = f"{pool.label} is short: {human_size(figures.free)} of {human_size(pool.capacity)} free, "
    text += f"{human_size(pool.reserve)} must stay free"
    text += f"; {others}; {ours}"
    if figures.coming:
        text += f", of which {human_size(figures.coming)} are on their way back"
    if stalled and seen.stall is not None:
        full, some = seen.stall.full, seen.stall.some
        who, share = ("all", full) if full >= STALL_FULL else ("some", some)
        text += f"; {who} programs waited for memory during {share:.0f} % of the last 10 s"
    return text
