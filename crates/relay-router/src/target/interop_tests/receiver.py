"""Takes deliveries and reads them with the unmodified packages from the package index.

Each delivery is verified with `standardwebhooks`, with the secret that is given and with the one before it, and read
with `cloudevents`. What was understood is printed, one JSON object a line.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

SECRETS = sys.argv[1:]


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        verified = []
        for secret in SECRETS:
            try:
                Webhook(secret).verify(body, headers)
                verified.append(True)
            except WebhookVerificationError:
                verified.append(False)
        try:
            Webhook(SECRETS[0]).verify(body + b" ", headers)
            forged = True
        except WebhookVerificationError:
            forged = False
        if headers["content-type"].startswith("application/cloudevents-batch+json"):
            # The package has no batches: each event of one is a message in the structured form.
            single = {"content-type": "application/cloudevents+json"}
            messages = [HTTPMessage(single, json.dumps(event).encode()) for event in json.loads(body)]
        else:
            messages = [HTTPMessage(headers, body)]
        events = [from_http_event(message) for message in messages]
        understood = [
            {
                "id": event.get_id(),
                "type": event.get_type(),
                "source": event.get_source(),
                "sequence": event.get_extension("sequence"),
                "data": event.get_data(),
            }
            for event in events
        ]
        line = {"verified": verified, "forged": forged, "webhook_id": headers["webhook-id"], "events": understood}
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
        print(json.dumps(line), flush=True)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Receiver)
print(server.server_address[1], flush=True)
server.serve_forever()
