/* A client in C through CURVE, from docs/protocol.md section 9.1.
 *
 * native_client REQUESTS CHANGES SERVER_KEY PUBLIC_KEY SECRET_KEY: puts app/c, prints the reply, and the change as it
 * was published; or "refused STATUS" where the daemon does not know the key.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

static void must(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s: %s\n", what, zmq_strerror(zmq_errno()));
        exit(1);
    }
}

static void *opened(void *context, int kind, char **keys)
{
    void *socket = zmq_socket(context, kind);
    int none = 0;
    must(!zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof none), "linger");
    must(!zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, keys[0], 41), "the server's key");
    must(!zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, keys[1], 41), "the public key");
    must(!zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, keys[2], 41), "the secret key");
    return socket;
}

/* The first and the last frame of a message. */
static void receive(void *socket, char *first, char *last, int size)
{
    int more = 1, count = 0;
    size_t width = sizeof more;
    while (more) {
        int got = zmq_recv(socket, count ? last : first, size - 1, 0);
        must(got >= 0 && got < size, "receiving");
        (count++ ? last : first)[got] = 0;
        must(!zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &width), "more");
    }
}

static void ask(void *socket, const char *header, const char *value)
{
    must(zmq_send(socket, header, strlen(header), value ? ZMQ_SNDMORE : 0) >= 0, "sending");
    if (value)
        must(zmq_send(socket, value, strlen(value), 0) >= 0, "sending");
}

int main(int count, char **given)
{
    static char first[65536], last[65536];
    must(count == 6, "five arguments");
    void *context = zmq_ctx_new();
    void *req = opened(context, ZMQ_REQ, given + 3), *sub = opened(context, ZMQ_SUB, given + 3);
    must(!zmq_socket_monitor(req, "inproc://monitor", ZMQ_EVENT_HANDSHAKE_FAILED_AUTH), "the monitor");
    void *monitor = zmq_socket(context, ZMQ_PAIR);
    must(!zmq_connect(monitor, "inproc://monitor"), "the monitor");
    must(!zmq_setsockopt(sub, ZMQ_SUBSCRIBE, "app/", 4), "subscribing");
    must(!zmq_setsockopt(sub, ZMQ_SUBSCRIBE, "\0heartbeat", 10), "subscribing");
    must(!zmq_connect(sub, given[2]) && !zmq_connect(req, given[1]), "connecting");

    ask(req, "{\"v\":1,\"ops\":[{\"op\":\"status\"}]}", NULL);
    zmq_pollitem_t either[] = {{req, 0, ZMQ_POLLIN, 0}, {monitor, 0, ZMQ_POLLIN, 0}};
    must(zmq_poll(either, 2, 30000) > 0, "an answer");
    if (either[1].revents) {
        uint32_t status;
        receive(monitor, first, last, sizeof first);
        memcpy(&status, first + 2, sizeof status);
        printf("refused %u\n", status);
        return 0;
    }
    receive(req, first, last, sizeof first);
    receive(sub, first, last, sizeof first); /* a heartbeat: the subscription has arrived */
    ask(req, "{\"v\":1,\"ops\":[{\"op\":\"put\",\"key\":\"app/c\",\"size\":2}]}", "hi");
    receive(req, first, last, sizeof first);
    printf("%s\n", first);
    do
        receive(sub, first, last, sizeof first);
    while (!*first);
    printf("%s %s\n", first, last);
    return 0;
}
