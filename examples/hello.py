import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from pycluster import cluster

class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"Hello from worker {os.getpid()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

if cluster.is_primary:
    print(f"Primary {os.getpid()} is running")
    for _ in range(os.cpu_count()):
        cluster.fork()

    @cluster.on("exit")
    def respawn(worker, code, signal):
        print(f"worker {worker.process.pid} died")
        if code != 0 and not worker.exited_after_disconnect:
            cluster.fork()

    cluster.run()
else:
    HTTPServer(("", 8000), Hello).serve_forever()      # every worker "binds" 8000
    # (unreachable until the worker is told to disconnect)
