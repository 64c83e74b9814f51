// Node.js's part of messages.py: the same program, for the same figures.
'use strict';
const cluster = require('node:cluster');
const { performance } = require('node:perf_hooks');

const [serialization, trips, count] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const message = (n) => ({ n, name: 'worker', text: 'hello, world' });

if (cluster.isPrimary) {
  cluster.setupPrimary({ serialization });
  const worker = cluster.fork();
  const figures = {};
  let phase = 'warm up';
  let left = Math.ceil(trips / 10);
  let began = 0;

  worker.on('message', (said) => {
    if (phase === 'to_primary') {
      if (--left === 0) {
        figures.to_primary = (count / (performance.now() - began)) * 1000;
        phase = 'to_worker';
        began = performance.now();
        for (let n = 0; n < count; n++) worker.send(message(n));
      }
    } else if (phase === 'to_worker') {
      figures.to_worker = (count / (performance.now() - began)) * 1000;
      console.log(JSON.stringify(figures));
      worker.disconnect();
    } else if (said === 'ready' || left-- > 0) {
      worker.send(message(left));
    } else if (phase === 'warm up') {
      phase = 'round_trips';
      left = trips - 1;
      began = performance.now();
      worker.send(message(left));
    } else {
      figures.round_trips = (trips / (performance.now() - began)) * 1000;
      phase = 'to_primary';
      left = count;
      began = performance.now();
      worker.send('send');
    }
  });
} else {
  let got = -1;
  process.on('message', (said) => {
    if (said === 'send') {
      got = 0;
      for (let n = 0; n < count; n++) process.send(message(n));
    } else if (got < 0) {
      process.send(said);
    } else if (++got === count) {
      process.send('got all');
    }
  });
  process.send('ready');
}
