from __future__ import annotations
import threading, time, socket, itertools, signal
import pytest
from tests.lab.test_policy_lists import *
from tests.lab.test_policy_lists import lab as lab
from dataplane.lab.witness import Witness
from dataplane.lab import exchange

def test_every_reject(lab, daemon):
    q = '\n[queue]\nmode = "every"\nnumber = 300\n'
    take(lab, rule(EVERYTHING), q)
    with opened(lab) as go_on:
        assert set(go_on()) == {"isp-b"}
        for use in ("reject", "main", "isp-c"):
            take(lab, rule(EVERYTHING, use), q)
            assert set(go_on()) == {"isp-b"}, use
        take(lab, rule(EVERYTHING, "reject"))
        assert set(go_on()) == {"isp-b"}
        take(lab, rule(EVERYTHING))

def test_kill(lab, daemon):
    with lab.router.inside(): pass
    take(lab, rule(EVERYTHING))
    with opened(lab) as go_on:
        assert set(go_on()) == {"isp-b"}
        path = daemon.file
        daemon.kill()
        assert set(go_on()) == {"isp-b"}
        write(lab, rule(EVERYTHING, "reject"))
        d2 = lab.run(path)
        assert set(go_on()) == {"isp-b"}
        d2.stop()
        assert set(go_on()) == {"isp-b"}
        lab._daemons[0] = d2

def test_flood(lab):
    d = lab.run(lab.file(key=KEY, probe=FAST))
    many = lab.directory / "many.txt"
    a_million(many)
    large = [f'\n[list.office]\nfiles = ["{many}"]\n', rule('destination = "@office"')]
    stop = threading.Event()
    n = itertools.count(1); last = [0]
    def flood():
        with lab.client.inside():
            while not stop.is_set():
                for k in range(20):
                    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    i = next(n)
                    s.sendto(exchange.request(i, 8), ("203.0.113.2" if i % 2 else "203.0.113.1", 9))
                    last[0] = i
                    s.close()
                time.sleep(0.004)
    with Witness(lab) as w:
        t = threading.Thread(target=flood); t.start()
        time.sleep(0.5)
        for _ in range(4):
            path = write(lab, *large)
            t0 = time.monotonic(); ask(path.parent / "control.sock", Reload()); print("reload", time.monotonic() - t0)
            t0 = time.monotonic(); ask(path.parent / "control.sock", Reload()); print("same again", time.monotonic() - t0)
            path = write(lab)
            t0 = time.monotonic(); ask(path.parent / "control.sock", Reload()); print("back", time.monotonic() - t0)
        stop.set(); t.join()
        time.sleep(0.5)
        seen = w.testimony()
        st = status(d)
        print("FLOOD sent", last[0], "seen", len(seen.links), "torn", len(seen.torn()), "wrong", seen.wrong_source_packets, "fallback", counted(lab, "fallback"), "guard", counted(lab, "wrong_source"), st["queue"]["dropped"], st["queue"]["errors"])
        print([l for l in d.log.splitlines() if "down" in l])
    import resource, os
    print(open(f"/proc/{d.process.pid}/status").read().split("VmRSS")[1].split("\n")[0])
    d.stop(signal.SIGINT)
