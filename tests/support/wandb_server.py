"""A W&B server on the loopback that says no."""

import http.server


class Answer(http.server.BaseHTTPRequestHandler):
    """A server that is there, and says no to everything."""

    def refuse(self):
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET = do_POST = refuse

    def log_message(self, *_):
        pass
