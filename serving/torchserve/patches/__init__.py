"""What is changed of TorchServe 0.12.0, and why. `start --stock` runs it without any of this.

Nothing of the installed package is touched. In the server's private folder lie copies of seven of its classes, which
stand before TorchServe's own on Java's class path; the script `python` is what TorchServe takes for Python. A
copy differs from its class in a few constants or instructions; where a class has another digest than that which this
was made for, a start is refused.

Batch delay (class `Model`)
    A worker gets at once what has gathered while it was busy. TorchServe waits for a batch to fill in whole
    milliseconds, and told to wait 0 it takes two requests at most. Told to wait 1, which it must be, a lone request
    waits for nothing a third of what a small model takes to answer. In the copy, 1 is a microsecond.

Names and unit of two metrics (class `RestJob`)
    How long requests wait and are computed is known in seconds, which are what the buckets of Prometheus' histograms
    are made for: `ts_queue_latency_seconds`, `ts_inference_latency_seconds`. TorchServe counts microseconds, all of
    which would land in the last bucket; stock, they are counters whose names end in `_microseconds`.

Words of a refusal (class `ApiUtils`)
    Whoever meets a full queue is told so. TorchServe's words are that there is no worker, and how to add one.

Bodies that curl sends (class `InferenceRequestHandler`)
    `curl --data-binary @FILE` and `curl -d JSON` call what they send a web page's form, unless they are told otherwise.
    TorchServe looks for the form's fields, answers 500, and logs parts of the image. In the copy no body is such a
    form, and what curl sends is what it is.

Connections (class `ServerInitializer`)
    A connection on which nothing comes for 75 seconds is closed. TorchServe waits for ever, and keeps what has come of
    a request in memory. Whoever is waiting for an answer has one long before; proxies commonly give up an idle
    connection after 60 seconds, before it is closed under their hands.

Large batches (class `AbstractByteBufAllocator`, of Netty)
    A batch is put together for its worker in a buffer that grows: twice as large up to 4 MiB, then by 4 MiB, and copied
    each time. A batch of 32 bodies of 15 MiB took five seconds of that. In the copy it doubles up to 1 GiB.

Keys (class `TokenAuthorization`, where the server asks for keys)
    Keys can be given, and survive a restart. TorchServe draws new ones, of six random bytes, at each start; stock, they
    are what `key_file.json` in the state folder says.

Torch (`worker.py`, and the script that runs it)
    TorchServe's worker imports torch only to tell whether an answer is a tensor: two of the 2.6 s of a core that it
    took to start. A worker that runs ONNX Runtime does without; stock, each of them imports it.

Receiving (`receiver.py`)
    A worker receives what has come at once, a request in 7 µs instead of 29, and a large body into one buffer of its
    length: 16 MiB take 6 ms instead of 18. It counts and logs a batch in its own thread before it waits for the next;
    stock, a thread beside it does, which takes Python's lock from the worker as it sends its answers.
"""
