// Node.js's part of balance.py: the same echo and HTTP server under its own cluster module.
//
//     NODE_CLUSTER_SCHED_POLICY=rr node cluster.js PORT WORKERS echo|http
//
// It prints "ready" once all workers listen, and ends at SIGTERM.
'use strict';
const cluster = require('node:cluster');
const http = require('node:http');
const net = require('node:net');

const [port, workers, protocol] = [Number(process.argv[2]), Number(process.argv[3]), process.argv[4]];
const HOST = '127.0.0.1';
const BACKLOG = 511;
const SLOW_MS = 50;

// Holds the loop, as time.sleep does in work.py.
const slow = () => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, SLOW_MS);

if (cluster.isPrimary) {
  let listening = 0;
  cluster.on('listening', () => {
    if (++listening === workers) console.log('ready');
  });
  cluster.on('exit', (worker, code, signal) => {
    console.error(`worker ${worker.id} ended by itself: ${code} ${signal}`);
    process.exit(1);
  });
  process.on('SIGTERM', () => {
    cluster.removeAllListeners('exit');
    for (const worker of Object.values(cluster.workers)) worker.process.kill('SIGKILL');
    process.exit(0);
  });
  for (let n = 0; n < workers; n++) cluster.fork();
} else {
  const line = Buffer.from(`worker ${cluster.worker.id}\n`);
  const server =
    protocol === 'echo'
      ? net.createServer((socket) => {
          socket.on('data', (data) => {
            if (data[0] === 0x7e) slow();
            socket.write(Buffer.concat([data, line]));
          });
          socket.on('error', () => socket.destroy());
        })
      : http.createServer((request, response) => {
          if (request.url === '/slow') slow();
          response.writeHead(200, { 'Content-Type': 'text/plain', 'Content-Length': line.length });
          response.end(line);
        });
  server.listen({ port, host: HOST, backlog: BACKLOG });
}
