"""The server of the page, without a browser."""

import json
from urllib.request import Request, urlopen

import pytest

from skipdit_cli.play import serve


def test_the_values_of_former_browser_sessions_are_let_go():
    gradio = pytest.importorskip("gradio", reason="the page needs the extra [play]")
    with gradio.Blocks(analytics_enabled=False) as page:
        button, text = gradio.Button(), gradio.HTML()
        button.click(lambda: "a picture", None, text, queue=False)
    page.launch_arguments = {"ssr_mode": False}
    address = serve.start(page, serve.choose_port(None))
    try:
        for number in range(serve.KEPT_SESSIONS + 5):
            call = json.dumps({"data": [], "fn_index": 0, "session_hash": f"session{number}"}).encode()
            request = Request(f"{address}/gradio_api/run/predict", call, {"Content-Type": "application/json"})
            assert json.load(urlopen(request))["data"] == ["a picture"]
        assert len(page.app.state_holder.session_data) == serve.KEPT_SESSIONS
    finally:
        page.close(verbose=False)
