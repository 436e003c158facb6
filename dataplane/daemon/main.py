"""The daemon: one event loop that wires the router, the control socket and the signals."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from dataplane.config.judgements import remarks
from dataplane.config.lists import reread
from dataplane.config.load import read_file, read_list_file
from dataplane.config.model import Config
from dataplane.daemon.answers import Answers
from dataplane.daemon.choosing import Choosing
from dataplane.daemon.control import ControlServer
from dataplane.daemon.events import Feed, Transition
from dataplane.daemon.filewatch import FileWatch, Look
from dataplane.daemon.hooks import Hooks
from dataplane.daemon.learn import Learning
from dataplane.daemon.messages import Drain, Explain, Reload, Request, Restore, Status, Stop
from dataplane.daemon.router import Router
from dataplane.daemon.watch import Watch
from dataplane.decide.facts import Facts
from dataplane.decide.learned import Known
from dataplane.decide.liveness import link_states
from dataplane.decide.slots import SLOTS
from dataplane.errors import DaemonError, Error
from dataplane.system.changes import ChangeListener

log = logging.getLogger("evenlink")

Answer = TypeVar("Answer")

# Changes come in flocks: the first is followed at once, the rest after this. Nor must two tools
# that undo each other keep a core busy.
LOOK_PAUSE_S = 0.2
# iptables-legacy and the like tell nobody: so look without being told, too.
LOOK_EVERY_S = 10.0
SAMPLE_EVERY_S = 2.0

_M_MMAP_THRESHOLD = -3  # malloc.h


def run(path: Path) -> int:
    """Reads the file, applies it and serves until a signal ends it. Returns the exit status."""
    config = read_file(path)
    return_large_blocks()
    _take_all_descriptors()
    logging.basicConfig(
        stream=sys.stderr,
        format="%(asctime)s evenlink %(levelname)s: %(message)s",
    )
    # Only ours: what the libraries tell at this level is no operator's business.
    log.setLevel(config.log_level.upper())
    return asyncio.run(_Daemon(path, config).serve())


def return_large_blocks() -> None:
    """Makes the C library hand blocks as large as a slot table back as soon as they are freed.

    Tables and programs come and go with every change of a link. glibc begins so, but takes them
    from its heap once the first is freed, where they leave holes that no other fits into: 60 KiB
    for each time that a link went and came back. A limit that was set stays.
    """
    with contextlib.suppress(AttributeError):  # not every C library has it
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, SLOTS)


def _take_all_descriptors() -> None:
    """As many as the system lets us have: probes by tcp and http need one a question."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Daemon:
    """Signals, socket and netlink events on the event loop; two threads beside it.

    Talking to the kernel blocks, and pyroute2's synchronous calls may not run on a thread that has
    an event loop. One thread makes all calls of the router, so they never overlap; another one
    answers questions, so that nobody who asks holds up the router.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self._path = path
        self._router = Router(config, self._tell)
        self._feed = Feed()
        self._hooks = Hooks(config.on_change)
        self._answers = Answers(self._router)
        self._router_thread = ThreadPoolExecutor(1, "router")
        self._answers_thread = ThreadPoolExecutor(1, "answers")
        self._choosing = Choosing(config)
        self._changed = asyncio.Event()
        self._judged = asyncio.Event()
        self._watch_if_claimed: Watch | None = None
        self._learning_if_claimed: Learning | None = None
        self._files_if_claimed: FileWatch | None = None
        # What was seen of the machine, and what is made of it, belong together.
        self._turn = asyncio.Lock()
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: asyncio.Future[bool] | None = None
        self._stopped = False

    @property
    def _watch(self) -> Watch:
        assert self._watch_if_claimed is not None, "made before anything is watched"
        return self._watch_if_claimed

    @property
    def _learning(self) -> Learning:
        assert self._learning_if_claimed is not None, "made before anything is learned"
        return self._learning_if_claimed

    @property
    def _files(self) -> FileWatch:
        assert self._files_if_claimed is not None, "made before a file is in force"
        return self._files_if_claimed

    async def _call(self, what: Callable[..., Answer], *arguments: Any) -> Answer:
        """On the router's thread."""
        return await self._run(self._router_thread, what, *arguments)

    async def _run(
        self, thread: ThreadPoolExecutor, what: Callable[..., Answer], *arguments: Any
    ) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(thread, what, *arguments)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def serve(self) -> int:
        loop = self._loop = asyncio.get_running_loop()
        self._ending = loop.create_future()
        # Before anything is applied: a signal that comes meanwhile must not leave half of it.
        loop.add_signal_handler(signal.SIGTERM, self._end, None)
        loop.add_signal_handler(signal.SIGINT, self._end, True)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._begin(self._reload_by_signal()))
        async with contextlib.AsyncExitStack() as last:
            last.callback(self._router_thread.shutdown)
            last.callback(self._answers_thread.shutdown)
            last.push_async_callback(self._run, self._answers_thread, self._answers.close)
            await self._call(self._router.claim)
            last.push_async_callback(self._call, self._router.release)
            self._watch_if_claimed = Watch(self._judged.set, self._router.silent_before)
            last.callback(self._watch.close)
            config = self._router.config
            self._learning_if_claimed = Learning(config, self._learned)
            last.push_async_callback(self._learning.stop)
            self._files_if_claimed = FileWatch(lambda: self._begin(self._reread()))
            last.callback(self._files.close)
            control = ControlServer(
                config.control_socket, config.control_group, self._answer, self._feed
            )
            last.push_async_callback(control.close)
            last.callback(self._feed.close)
            last.push_async_callback(self._hooks.close)
            control.bind()
            listener = ChangeListener()
            last.callback(listener.close)
            undo = await self._serve_started(control, listener)
        log.info("stopped; %s", "all undone" if undo else "the kernel goes on serving")
        return 0

    async def _serve_started(self, control: ControlServer, listener: ChangeListener) -> bool:
        """From the router's start to its stop; whether all was undone."""
        assert self._ending is not None, "made before anything is started"
        loop = asyncio.get_running_loop()
        self._watch.take(self._router.config)
        facts = await self._look()
        await self._call(self._router.start, facts, self._watch.judgements())
        undo = True
        try:
            self._watch.serve(self._router.wish.link_marks)
            await self._learning.start()
            self._files.take(self._router.config.watched_files)
            await control.start()
            for one in listener.sockets:
                loop.add_reader(one, self._told, listener, one)
            self._begin(self._follow_machine())
            self._begin(self._follow_health())
            self._begin(self._follow_load())
            self._begin(self._sample())
            self._say_ready()
            self._begin(self._remark(self._router.config))
            undo = await self._ending
        finally:
            for task in self._tasks:
                task.cancel()
            for one in listener.sockets:
                loop.remove_reader(one)
            if not self._stopped:
                self._stopped = True
                await self._call(self._router.stop, undo)
        return undo

    def _say_ready(self) -> None:
        config = self._router.config
        states = self._router.wish.states.values()
        log.info(
            "ready: %d of %d links up, queue %d, control socket %s",
            sum(state.alive for state in states),
            len(config.links),
            config.queue.number,
            config.control_socket,
        )

    async def _remark(self, config: Config) -> None:
        """Says what of the file may not be meant. Long lists take a second to compare."""
        for words in await asyncio.to_thread(remarks, config):
            log.warning("%s", words)

    def _end(self, undo: bool | None) -> None:
        assert self._ending is not None, "made before the handlers that call this"
        if not self._ending.done():
            by_file = self._router.config.on_stop == "undo"
            self._ending.set_result(by_file if undo is None else undo)

    def _fail(self, fault: Error) -> None:
        assert self._ending is not None, "made before anybody is answered"
        if not self._ending.done():
            self._ending.set_exception(fault)

    def _tell(self, transition: Transition) -> None:
        """Called by the router, on its thread."""
        interface = self._router.wish.config.link(transition.link).interface
        self._loop.call_soon_threadsafe(self._feed.tell, transition)
        self._loop.call_soon_threadsafe(self._hooks.tell, transition, interface)

    def _told(self, listener: ChangeListener, one: socket.socket) -> None:
        if listener.drain(one):
            self._changed.set()

    async def _look(self) -> Facts:
        """Looks at the machine, and has health hear of it."""
        facts = await self._call(self._router.look)
        self._watch.see(facts, link_states(self._router.config, facts))
        return facts

    async def _follow_machine(self) -> None:
        """Looks when something changed, and once in a while without being told."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), LOOK_EVERY_S)
            await self._survive(self._refresh)
            await asyncio.sleep(LOOK_PAUSE_S)

    async def _follow_health(self) -> None:
        while True:
            await self._judged.wait()
            self._judged.clear()
            await self._survive(self._judge)

    async def _refresh(self) -> None:
        async with self._turn:
            self._changed.clear()
            facts = await self._look()
            await self._call(self._router.refresh, facts, self._watch.judgements())

    async def _judge(self) -> None:
        """Where the machine changed meanwhile, what was seen of it is worth nothing any more."""
        if self._changed.is_set():
            await self._refresh()
            return
        async with self._turn:
            await self._call(self._router.judge, self._watch.judgements())

    async def _follow_load(self) -> None:
        """Measures, where a group's link depends on it."""
        while True:
            if self._choosing.needed:
                await self._survive(self._choose)
            await asyncio.sleep(self._choosing.interval_s)

    async def _choose(self) -> None:
        async with self._turn:
            counters = await self._call(self._router.counters)
            choices = self._choosing.sample(
                time.monotonic(), counters, self._watch.round_trips(), self._router.wish.served
            )
            await self._call(self._router.choose, choices)

    async def _sample(self) -> None:
        while True:
            await self._survive(lambda: self._call(self._router.sample))
            await asyncio.sleep(SAMPLE_EVERY_S)

    async def _survive(self, what: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Whatever goes wrong once, the next time it is tried again."""
        if self._stopped:
            return
        try:
            await what()
        except Error as fault:
            # What became another machine meanwhile is about to be looked at again.
            log.log(logging.DEBUG if self._changed.is_set() else logging.ERROR, "%s", fault)
        except Exception:
            log.exception("looking at the machine failed; the daemon goes on")

    async def _reload_by_signal(self) -> None:
        try:
            await self._reload()
        except Error as fault:
            log.error("reload refused, the old file stays in force: %s", fault)
        except Exception:
            log.exception("reload failed, the old file stays in force")

    async def _reload(self) -> None:
        if self._stopped:
            raise DaemonError("the daemon is ending")
        async with self._reloading:
            # A list of a million prefixes takes seconds, in which links are watched as ever.
            looks = await self._files.looks()
            config = await asyncio.to_thread(read_file, self._path)
            await self._take(config, looks)
        log.info("reloaded %s", self._path)
        self._begin(self._remark(config))

    async def _take(self, config: Config, looks: Mapping[Path, Look]) -> None:
        """`looks` are the watched files before they were read."""
        async with self._turn:
            facts = await self._call(self._router.look, config)
            await self._call(self._router.reload, config, facts, self._watch.judgements())
            self._choosing.take(config)
            self._watch.take(config)
            self._watch.see(facts, link_states(config, facts))
            self._watch.serve(self._router.wish.link_marks)
        # A link by another interface or gateway is not what was judged before.
        self._judged.set()
        await self._learning.take(config)
        self._files.take(config.watched_files, looks)
        self._hooks.replace(config.on_change)
        log.setLevel(config.log_level.upper())

    async def _reread(self) -> None:
        """Files of lists that are watched have changed. A fault leaves the old lists in force."""
        if self._stopped:
            return
        try:
            async with self._reloading:
                looks = await self._files.looks()
                lists = await asyncio.to_thread(reread, self._router.config, read_list_file)
                await self._take(lists, looks)
            log.info("lists are read again, since their files have changed")
        except Error as fault:
            log.error("changed files of lists are refused, the old ones stay in force: %s", fault)
        except Exception:
            log.exception("reading lists again failed, the old ones stay in force")

    def _learned(self, known: Known) -> None:
        self._begin(self._survive(lambda: self._call(self._router.learn, known)))

    async def _set_by_hand(self, what: Callable[[str], None], link: str) -> None:
        """What is refused now is tried again at the next look."""
        await self._call(what, link)
        await self._survive(self._judge)

    async def _answer(self, request: Request) -> Any:
        if self._stopped:
            raise DaemonError("the daemon is ending")
        match request:
            case Status():
                health, learned = self._watch.report(), self._learning.report()
                faults = [*self._hooks.faults(), *self._learning.faults()]
                return await self._run(
                    self._answers_thread, self._answers.status, health, learned, faults
                )
            case Explain(flows, dead):
                return await self._run(self._answers_thread, self._answers.explain, flows, dead)
            case Drain(link):
                await self._set_by_hand(self._router.drain, link)
                return {}
            case Restore(link):
                await self._set_by_hand(self._router.restore, link)
                return {}
            case Reload():
                await self._reload()
                return {}
            case Stop(undo):
                self._stopped = True
                try:
                    await self._call(self._router.stop, undo)
                except Error as fault:
                    self._fail(fault)
                    raise
                self._end(undo)
                return {}
