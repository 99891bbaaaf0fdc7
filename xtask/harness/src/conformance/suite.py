"""Runs the cases of the Autobahn testsuite against a WebSocket server that echoes.

The cases are those of the package `autobahntestsuite`, unchanged: the messages that each sends and expects, and its
judgement. The package is written for Python 2, and so is the program around its cases; this file replaces that program.
The cases drive a current version of their client, the package `autobahn`.

Python 2 has one type for text and bytes, on which the cases rely. Here they see text in which every character is one
byte (Latin-1), and it is converted on its way to the client and back.

    suite.py URL RESULTS.json [--messages COUNT] SECTION_OR_CASE...
"""

import argparse
import asyncio
import binascii
import importlib.abc
import importlib.util
import json
import pathlib
import re
import sys
import time
import types

from autobahn.asyncio.websocket import WebSocketClientFactory, WebSocketClientProtocol
from autobahn.websocket.protocol import WebSocketProtocol
from autobahn.websocket.utf8validator import Utf8Validator

# Cases that mostly wait run beside each other; those of these sections are busy, and fewer run at once.
BUSY = ("9", "12", "13")
AT_ONCE = 16
BUSY_AT_ONCE = 4
# The factor by which the cases wait longer, for a busy machine. A server that answers in time is not slowed.
PATIENCE = 5
# The time limit of a case, which only a server that no longer answers reaches.
CASE_SECONDS = 120


def to_bytes(text):
    return text.encode("latin-1") if isinstance(text, str) else text


class CaseModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the modules of the cases, which are in Python 2."""

    # The differences of Python 3 in those files.
    CHANGES = [
        (r"^(\s*)print (.*)$", r"\1print(\2)"),
        (r"\(object, Case, \)", "(Case,)"),
        (r"\bxrange\b", "range"),
        (r"\bunichr\b", "chr"),
        (r"len\(self\.payload\) / ", "len(self.payload) // "),
        (r"\bbinascii\.b2a_hex\(", "hexadecimal("),
        (r"(\bx\.|[( ])requestNoContextTakeover\b(?= =|,|\)\) for)", r"\1request_no_context_takeover"),
        (r"(\bx\.|[( ])requestMaxWindowBits\b(?= =|\) for)", r"\1request_max_window_bits"),
        # A case that is not in the list, and needs Twisted.
        (r"^from (case9_9_1|zope\.interface|twisted\.\S+) import .*$", ""),
        (r"^from autobahn\.websocket\.utf8validator import Utf8Validator$", ""),
    ]

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        file = self.package / "case" / ("__init__.py" if name == "cases" else f"{name}.py")
        if "." in name or not re.fullmatch(r"cases|case[0-9x_X]*", name) or not file.is_file():
            return None
        return importlib.util.spec_from_file_location(name, file, loader=self)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        source = pathlib.Path(module.__spec__.origin).read_text(encoding="latin-1")
        for pattern, replacement in self.CHANGES:
            source = re.sub(pattern, replacement, source, flags=re.MULTILINE)
        module.hexadecimal = lambda text: binascii.b2a_hex(to_bytes(text)).decode("ascii")
        module.Utf8Validator = TextUtf8Validator
        exec(compile(source, module.__spec__.origin, "exec"), module.__dict__)


class TextUtf8Validator(Utf8Validator):
    def validate(self, text):
        return super().validate(to_bytes(text))


def load(package):
    """The package's case classes and their section names."""
    resources = types.ModuleType("pkg_resources")
    resources.resource_filename = lambda _, name: str(package / name)
    sys.modules["pkg_resources"] = resources
    sys.meta_path.insert(0, CaseModules(package))
    cases = importlib.import_module("cases")
    # The cases compare pickles, in which Python 3 distinguishes equal strings.
    importlib.import_module("case").Case.compare = lambda _, one, other: one == other
    return cases


def identifier(case):
    return case.__name__.removeprefix("Case").replace("_", ".")


class Judge(WebSocketClientProtocol):
    """A client that does what its case says. It has the interface that the cases expect."""

    def __init__(self, case, factory, done):
        super().__init__()
        self.factory = factory
        self.connectionWasOpen = False
        self.createWirelog = False
        self.txFrameStats = {}
        self.done = done
        self.takes_bytes = case.__name__.startswith(("Case12_", "Case13_"))
        self.case = case(self)

    # The callbacks of the client.

    def onOpen(self):
        self.connectionWasOpen = True
        self.case.onOpen()

    def onMessage(self, payload, isBinary):
        self.case.onMessage(payload if self.takes_bytes else payload.decode("latin-1"), isBinary)

    def onPong(self, payload):
        self.case.onPong(payload.decode("latin-1"))

    def onClose(self, wasClean, code, reason):
        self.case.onClose(wasClean, code, reason)

    def _connectionLost(self, reason):
        super()._connectionLost(reason)
        self.case.onConnectionLost(self.failedByMe)
        if not self.done.done():
            self.done.set_result(None)

    def logRxFrame(self, frameHeader, payload):
        pass

    def logTxFrame(self, frameHeader, payload, repeatLength, chopsize, sync):
        self.txFrameStats[frameHeader.opcode] = self.txFrameStats.get(frameHeader.opcode, 0) + 1

    # The methods that the cases call.

    def sendFrame(self, opcode, payload=b"", **options):
        super().sendFrame(opcode, payload=to_bytes(payload), **options)

    def sendMessage(self, payload, *options, **named):
        super().sendMessage(to_bytes(payload), *options, **named)

    def sendMessageFrameData(self, payload, sync=False):
        return super().sendMessageFrameData(to_bytes(payload), sync)

    def sendCloseFrame(self, code=None, reasonUtf8=None, isReply=False):
        super().sendCloseFrame(code, to_bytes(reasonUtf8), isReply)

    def enableWirelog(self, enable):
        pass

    def later(self, delay, action):
        act = lambda: action() if self.state != WebSocketProtocol.STATE_CLOSED else None
        asyncio.get_running_loop().call_later(delay, act)

    def continueLater(self, delay, action, tag=None):
        self.later(delay, action)

    def killAfter(self, delay):
        self.later(PATIENCE * delay, self._fail_connection)

    def closeAfter(self, delay):
        self.later(delay, self.sendClose)


async def run_case(case, url):
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    factory = WebSocketClientFactory(url)
    options = {"closeHandshakeTimeout": PATIENCE, "serverConnectionDropTimeout": PATIENCE}
    factory.setProtocolOptions(failByDrop=False, **options)
    factory.logFrames = True
    judge = Judge(case, factory, done)
    began = time.monotonic()
    await loop.create_connection(lambda: judge, factory.host, factory.port)
    try:
        await asyncio.wait_for(done, CASE_SECONDS)
    except TimeoutError:
        judge.case.behavior, judge.case.result = "FAILED", f"no end within {CASE_SECONDS} s"
    seconds = round(time.monotonic() - began, 3)
    print(f"{identifier(case)}: {judge.case.behavior}, close {judge.case.behaviorClose}, {seconds} s", flush=True)
    return {
        "id": identifier(case),
        "behavior": judge.case.behavior,
        "close": judge.case.behaviorClose,
        "reason": f"{judge.case.result}; {judge.case.resultClose} (code {judge.remoteCloseCode})",
    }


async def run_all(cases, url):
    async def one(case, places):
        async with places:
            return await run_case(case, url)

    busy = [case for case in cases if identifier(case).split(".")[0] in BUSY]
    light, heavy = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(BUSY_AT_ONCE)
    results = await asyncio.gather(*(one(case, light) for case in cases if case not in busy))
    return results + await asyncio.gather(*(one(case, heavy) for case in busy))


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("url")
    arguments.add_argument("results", type=pathlib.Path)
    arguments.add_argument("--messages", type=int, help="messages of a case that sends many, when not all of its own")
    arguments.add_argument("selected", nargs="+")
    given = arguments.parse_args()

    # Found, not imported: it is in Python 2.
    cases = load(pathlib.Path(importlib.util.find_spec("autobahntestsuite").origin).parent)
    selected = []
    for case in cases.Cases:
        name = identifier(case)
        if any(name == wanted or name.startswith(wanted + ".") for wanted in given.selected):
            if given.messages and hasattr(case, "COUNT"):
                case.COUNT = min(case.COUNT, given.messages)
            selected.append(case)
    sections = {**cases.CaseCategories, **cases.CaseSubCategories}
    results = asyncio.run(run_all(selected, given.url))
    results.sort(key=lambda result: [int(part) for part in result["id"].split(".")])
    given.results.write_text(json.dumps({"sections": sections, "cases": results}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
