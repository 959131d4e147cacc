"""Clock boost: raises the performance level of a device while a model on it serves requests.

Knows which device is in use because a model is; when and to what level is decided by the LevelKeeper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from accelerd.base.events import EventStream
from accelerd.config.machine_settings import PerformanceSettings
from accelerd.config.model import ConfigApplied, ModelSpec
from accelerd.devices.current_devices import DevicesChanged
from accelerd.devices.keeper import LevelKeeper
from accelerd.devices.level import LevelRules
from accelerd.devices.model import Device
from accelerd.devices.setters import DirectSetter
from accelerd.estimate.placing import default_device
from accelerd.scheduler.events import ModelInUse


class ClockBoost:
    """Subscribes to models in use, devices and the configuration. All methods on the event loop's thread."""

    def __init__(
        self,
        keeper: LevelKeeper,
        direct: DirectSetter,
        devices: Callable[[], Sequence[Device]],
        placed: Callable[[str], str],
        events: EventStream,
    ) -> None:
        """`devices()`: those of this machine; `placed(model)`: the device it was placed on, "" if that is open."""
        self.keeper = keeper
        self._direct = direct
        self._list_devices = devices
        self._placed = placed
        self._devices: Sequence[Device] = ()
        self._used: dict[str, tuple[ModelSpec, str | None]] = {}  # models in use, and the slot that counts as used
        events.subscribe(ModelInUse, self.on_model_in_use)
        events.subscribe(DevicesChanged, self.on_devices_changed)
        events.subscribe(ConfigApplied, self.on_config)

    def on_model_in_use(self, event: ModelInUse) -> None:
        spec = event.spec
        if event.in_use:
            slot = self._slot(spec)
            self._used[spec.name] = (spec, slot)
            if slot is not None:
                self.keeper.begin(slot)
        else:
            _, slot = self._used.pop(spec.name, (spec, None))
            if slot is not None:
                self.keeper.end(slot)

    def _slot(self, spec: ModelSpec) -> str | None:
        """PCI slot of the GPU that the model uses; None: it uses none. An NPU's work makes no GPU faster."""
        used = self._placed(spec.name) or default_device(spec, self._devices)
        return next((d.slot for d in self._devices if d.id == used and d.kind == "gpu"), None)

    def on_devices_changed(self, event: DevicesChanged) -> None:
        self._use(event.after)

    def on_config(self, event: ConfigApplied) -> None:
        self.configure(event.config.performance)

    def _use(self, devices: Sequence[Device]) -> None:
        """Levels are kept for these devices from now on."""
        for _, slot in self._used.values():
            if slot is not None:
                self.keeper.end(slot)
        self._devices = devices
        self.keeper.watch(devices)
        for name, (spec, _) in self._used.items():
            slot = self._slot(spec)
            self._used[name] = (spec, slot)
            if slot is not None:
                self.keeper.begin(slot)

    def configure(self, settings: PerformanceSettings) -> None:
        def rules(slot: str) -> LevelRules:
            own = settings.devices.get(slot)
            return LevelRules(own or settings.policy, settings.hold_time)

        self.keeper.configure(rules)

    async def run(self) -> None:
        """Repair what an earlier daemon left, then keep the levels until cancelled."""
        await self._direct.repair()
        self._use(self._list_devices())
        await self.keeper.run()

    def owner(self, device: str) -> str | None:
        """Who set the performance level of the device with this id; None: unknown."""
        return next((one["by"] for one in self.keeper.report() if one["slot"] == device), None)
