/* Closed-loop load for the benchmark: C connections, each sends a request when its last answer is complete.
 *
 *   load PORT CONNECTIONS SECONDS CHUNKS SEGMENTS PATH KEY < BODY
 *
 * Owns the clock of the measurement: prints one JSON object with latencies in microseconds. CHUNKS 0 times whole
 * answers. CHUNKS N > 0 expects N stamped events (see upstream.c) in each and times the first one from the request
 * and every one from its stamp. Streams start spread over 50 ms, so that no burst of starts is measured.
 * SEGMENTS 2 sends head and body one after the other, as httpx does (openai-python); 1 sends them together.
 * Must never hide a failure: a bad status, a cut answer or a missing chunk counts as an error.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define STAMP 20       /* digits */
#define MAX_ERRORS 100 /* then give up */
#define DRAIN_S 5      /* for the answers under way at the end */

enum phase { HEAD, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, DONE };

struct samples { float *us; size_t n, cap; };

struct conn {
    int fd;
    bool busy;
    uint64_t start_at, sent_at; /* nanoseconds */
    char raw[65536];            /* bytes not parsed yet: a head or a chunk's size line may be cut anywhere */
    size_t raw_len;
    char text[4096];            /* the end of the body, where a stamp may be cut */
    size_t text_len;
    enum phase phase;
    size_t left;                /* of the body or of the chunk */
    bool chunked, closing;
    long chunks;
};

static struct samples latency, first, delay;
static long errors, reconnects, completed, expected_chunks;
static char complaint[512];
static char *request;
static size_t request_len, head_len; /* head_len: of the first segment */
static int epoll_fd, port;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void fail(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void add(struct samples *s, double us) {
    if (s->n == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 65536;
        if (!(s->us = realloc(s->us, s->cap * sizeof *s->us))) fail("out of memory");
    }
    s->us[s->n++] = (float)us;
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *name, struct samples *s) {
    printf(",\"%s\":", name);
    if (!s->n) { printf("null"); return; }
    qsort(s->us, s->n, sizeof *s->us, ascending);
    printf("{\"n\":%zu,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f}", s->n, (double)s->us[(s->n - 1) / 2],
           (double)s->us[(s->n - 1) * 9 / 10], (double)s->us[(s->n - 1) * 99 / 100], (double)s->us[s->n - 1]);
}

static void open_connection(struct conn *c) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    int one = 1;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (void *)&a, sizeof a)) fail("cannot connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
}

static void reopen(struct conn *c) {
    close(c->fd);
    open_connection(c);
    reconnects++;
    c->raw_len = 0;
}

static void broken(struct conn *c, const char *why) {
    if (!errors++ && !complaint[0]) snprintf(complaint, sizeof complaint, "%s", why);
    if (errors >= MAX_ERRORS) { fprintf(stderr, "load: too many errors, the first: %s\n", complaint); exit(1); }
    c->busy = false;
    reopen(c);
}

static void begin(struct conn *c) {
    c->phase = HEAD;
    c->text_len = 0;
    c->chunks = 0;
    c->busy = true;
    c->sent_at = now_ns();
    for (size_t done = 0; done < request_len;) { /* blocks: the request fits into the socket's buffer */
        ssize_t w = send(c->fd, request + done, (done < head_len ? head_len : request_len) - done, MSG_NOSIGNAL);
        if (w < 0) { broken(c, "cannot send the request"); return; }
        done += (size_t)w;
    }
}

/* Take the stamps out of `n` bytes of body. */
static void body(struct conn *c, const char *data, size_t n, uint64_t now) {
    while (n) {
        size_t take = sizeof c->text - c->text_len - 1;
        if (take > n) take = n;
        memcpy(c->text + c->text_len, data, take);
        c->text_len += take;
        data += take;
        n -= take;
        char *from = c->text, *end = c->text + c->text_len, *p;
        while ((p = memmem(from, (size_t)(end - from), "\"T", 2)) && p + 3 + STAMP <= end) {
            from = p + 2;
            if (strspn(from, "0123456789") < STAMP) continue;
            if (!c->chunks++) add(&first, (double)(now - c->sent_at) / 1e3);
            add(&delay, ((double)now - (double)strtoull(from, NULL, 10)) / 1e3);
        }
        size_t keep = p ? (size_t)(end - p) : (end > from && end[-1] == '"');
        memmove(c->text, end - keep, keep);
        c->text_len = keep;
    }
}

/* The head has arrived whole: what follows? False: not a usable answer. */
static bool head(struct conn *c, char *h) {
    char *length = strcasestr(h, "\r\ncontent-length:"), *chunked = strcasestr(h, "\r\ntransfer-encoding: chunked");
    char *close = strcasestr(h, "\r\nconnection: close");
    if (strncmp(h, "HTTP/1.1 200", 12) || (!length && !chunked)) {
        if (!complaint[0]) snprintf(complaint, sizeof complaint, "%.300s", h);
        return false;
    }
    c->closing = close != NULL;
    c->chunked = chunked != NULL;
    c->left = length ? strtoul(length + 17, NULL, 10) : 0;
    c->phase = chunked ? CHUNK_SIZE : c->left ? LENGTH : DONE;
    return true;
}

/* Parse what is in `raw`; leaves an unfinished line there. False: the answer is broken. */
static bool parse(struct conn *c, uint64_t now) {
    char *p = c->raw, *end = c->raw + c->raw_len;
    while (p < end && c->phase != DONE) {
        if (c->phase == LENGTH || c->phase == CHUNK_DATA) {
            size_t n = (size_t)(end - p) < c->left ? (size_t)(end - p) : c->left;
            if (expected_chunks) body(c, p, n, now);
            p += n;
            c->left -= n;
            if (!c->left) c->phase = c->phase == LENGTH ? DONE : CHUNK_END;
            continue;
        }
        const char *mark = c->phase == HEAD ? "\r\n\r\n" : "\r\n";
        char *eol = memmem(p, (size_t)(end - p), mark, strlen(mark));
        if (!eol) break;
        if (c->phase == HEAD) {
            eol[2] = 0; /* keeps the CR LF of the last line */
            if (!head(c, p)) return false;
            p = eol + 4;
            continue;
        }
        if (c->phase == CHUNK_SIZE) {
            c->left = strtoul(p, NULL, 16);
            c->phase = c->left ? CHUNK_DATA : TRAILER;
        } else if (c->phase == CHUNK_END) c->phase = CHUNK_SIZE;
        else if (eol == p) c->phase = DONE; /* the empty line after the trailer */
        p = eol + 2;
    }
    c->raw_len = (size_t)(end - p);
    memmove(c->raw, p, c->raw_len);
    return true;
}

static void readable(struct conn *c) {
    ssize_t r = recv(c->fd, c->raw + c->raw_len, sizeof c->raw - c->raw_len - 1, MSG_DONTWAIT);
    uint64_t now = now_ns();
    if (r < 0 && errno == EAGAIN) return;
    if (r <= 0) {
        if (c->busy) broken(c, "the connection was closed before the answer was complete");
        else reopen(c);
        return;
    }
    c->raw_len += (size_t)r;
    c->raw[c->raw_len] = 0;
    if (!c->busy) { broken(c, "bytes after the end of an answer"); return; }
    if (!parse(c, now)) { broken(c, "not a complete answer with status 200"); return; }
    if (c->phase != DONE) return;
    if (c->chunks != expected_chunks) { broken(c, "chunks of a stream are missing"); return; }
    completed++;
    add(&latency, (double)(now - c->sent_at) / 1e3);
    c->busy = false;
    if (c->closing) reopen(c);
}

static void read_request(const char *path, const char *key, bool split) {
    char *data = NULL;
    size_t n = 0, cap = 0;
    for (size_t r = 1; r; n += r) {
        if (n + 4096 > cap && !(data = realloc(data, cap = 2 * cap + 8192))) fail("out of memory");
        r = fread(data + n, 1, cap - n, stdin);
    }
    if (!(request = malloc(n + 2048))) fail("out of memory");
    int h = snprintf(request, 2048,
                     "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nAccept: */*\r\n"
                     "User-Agent: accelerd-bench\r\nAuthorization: Bearer %s\r\nContent-Length: %zu\r\n\r\n",
                     path, port, key, n);
    memcpy(request + h, data, n);
    request_len = (size_t)h + n;
    head_len = split ? (size_t)h : request_len;
    free(data);
}

int main(int argc, char **argv) {
    if (argc != 8) { fputs("usage: load PORT CONNECTIONS SECONDS CHUNKS SEGMENTS PATH KEY < BODY\n", stderr); return 2; }
    port = atoi(argv[1]);
    int n_conns = atoi(argv[2]);
    double seconds = atof(argv[3]);
    expected_chunks = atol(argv[4]);
    read_request(argv[6], argv[7], atoi(argv[5]) == 2);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct conn *conns = calloc((size_t)n_conns, sizeof *conns);
    if (!conns) fail("out of memory");
    for (int i = 0; i < n_conns; i++) open_connection(&conns[i]);
    uint64_t begun = now_ns(), stop = begun + (uint64_t)(seconds * 1e9), give_up = stop + DRAIN_S * 1000000000ull;
    for (int i = 0; i < n_conns; i++)
        conns[i].start_at = expected_chunks ? begun + 50000000ull * (uint64_t)i / (uint64_t)n_conns : begun;
    for (;;) {
        uint64_t now = now_ns(), next = UINT64_MAX;
        int active = 0;
        for (int i = 0; i < n_conns; i++) {
            struct conn *c = &conns[i];
            if (!c->busy && now < stop && c->start_at <= now) begin(c);
            if (!c->busy && now < stop && c->start_at < next) next = c->start_at;
            active += c->busy || (now < stop && c->start_at > now);
        }
        if (!active) break;
        if (now > give_up) { fputs("load: answers did not end\n", stderr); return 1; }
        struct epoll_event events[256];
        int n = epoll_wait(epoll_fd, events, 256, next == UINT64_MAX ? 200 : 1);
        for (int k = 0; k < n; k++) readable(events[k].data.ptr);
    }
    printf("{\"requests\":%ld,\"seconds\":%.4f,\"errors\":%ld,\"reconnects\":%ld", completed,
           (double)(now_ns() - begun) / 1e9, errors, reconnects);
    print_samples("latency_us", &latency);
    print_samples("ttft_us", &first);
    print_samples("delay_us", &delay);
    puts("}");
    if (complaint[0]) fprintf(stderr, "load: %s\n", complaint);
    free(conns);
    return 0;
}
