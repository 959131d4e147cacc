/* A fast fake of llama-server: the engine that every contender of the benchmark talks to.
 *
 * Owns: the part of llama-server's command line and HTTP that a supervisor and a proxy see. One thread, epoll,
 * keep-alive, no allocation per request. Must never be the slowest part of a measurement, nor do more than the
 * real one promises.
 *
 * A chat or completion with "stream": true is answered with chunks of server-sent events. Each carries the time at
 * which it was sent ("T" and 20 digits, CLOCK_MONOTONIC nanoseconds), so that load.c can tell how late it arrives.
 * How many and how far apart: "fake_chunks" and "fake_gap_us" in the request's body, else $FAKE_CHUNKS and
 * $FAKE_GAP_US, else 16 chunks without a gap. Everything else is one small JSON body with Content-Length.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MAX_FDS 4096
#define MAX_BODY (8u << 20)
#define MAX_LISTENERS 4
#define MAX_UNSENT 65536

static const char HELP[] =
    "----- common params -----\n\n"
    "-h,    --help, --usage                  print usage and exit\n"
    "--version                               show version and build info\n"
    "-t,    --threads N                      number of CPU threads\n"
    "-c,    --ctx-size N                     size of the prompt context\n"
    "-n,    --predict, --n-predict N         number of tokens to predict\n"
    "-b,    --batch-size N                   logical maximum batch size\n"
    "-ub,   --ubatch-size N                  physical maximum batch size\n"
    "-fa,   --flash-attn [on|off|auto]       set Flash Attention use\n"
    "-ctk,  --cache-type-k TYPE              KV cache data type for K\n"
    "                                        allowed values: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1\n"
    "-ctv,  --cache-type-v TYPE              KV cache data type for V\n"
    "                                        allowed values: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1\n"
    "-lm,   --load-mode MODE                 model loading mode (auto, none, mmap, mlock, mmap+mlock, dio)\n"
    "-ngl,  --gpu-layers, --n-gpu-layers N   max. number of layers to store in VRAM\n"
    "-fit,  --fit [on|off]                   whether to adjust unset arguments to fit in device memory\n"
    "-m,    --model FNAME                    model path to load\n"
    "-hf,   -hfr, --hf-repo <user>/<model>[:quant]\n"
    "                                        Hugging Face model repository\n"
    "--log-disable                           Log disable\n"
    "--log-colors [on|off|auto]              Set colored logging\n"
    "--offline                               Offline mode\n"
    "-lv,   --verbosity, --log-verbosity N   Set the verbosity threshold\n"
    "\n\n----- sampling params -----\n\n"
    "-s,    --seed SEED                      RNG seed\n"
    "--temp, --temperature N                 temperature\n"
    "--top-k N                               top-k sampling\n"
    "--top-p N                               top-p sampling\n"
    "--min-p N                               min-p sampling\n"
    "--repeat-penalty N                      penalize repeat sequence of tokens\n"
    "--presence-penalty N                    repeat alpha presence penalty\n"
    "--frequency-penalty N                   repeat alpha frequency penalty\n"
    "\n\n----- example-specific params -----\n\n"
    "-cram, --cache-ram N                    set the maximum cache size in MiB\n"
    "-kvu,  --kv-unified, -no-kvu, --no-kv-unified\n"
    "                                        use single unified KV buffer shared across all sequences\n"
    "--warmup, --no-warmup                   whether to perform warmup with an empty run\n"
    "--pooling {none,mean,cls,last,rank}     pooling type for embeddings\n"
    "-np,   --parallel N                     number of server slots\n"
    "-mm,   --mmproj FILE                    path to a multimodal projector file\n"
    "-a,    --alias STRING                   set model name aliases, comma-separated\n"
    "--host HOST                             IP addresses to listen on, comma-separated, or UNIX socket paths\n"
    "                                        if the address ends with .sock (default: 127.0.0.1)\n"
    "--port PORT                             port to listen (default: 8080)\n"
    "--ui,  --webui, --no-ui, --no-webui     whether to enable the Web UI\n"
    "--embedding, --embeddings               restrict to only support embedding use case\n"
    "--rerank, --reranking                   enable reranking endpoint on server\n"
    "--api-key KEY                           API key to use for authentication\n"
    "                                        (env: LLAMA_API_KEY)\n"
    "-to,   --timeout N                      server read/write timeout in seconds\n"
    "--sse-ping-interval N                   server SSE ping interval in seconds\n"
    "--threads-http N                        number of threads used to process HTTP requests\n"
    "--metrics                               enable prometheus compatible metrics endpoint\n"
    "--props                                 enable changing global properties via POST /props\n"
    "--slots, --no-slots                     expose slots monitoring endpoint\n"
    "--jinja, --no-jinja                     whether to use jinja template engine for chat\n"
    "--chat-template-file JINJA_TEMPLATE_FILE\n"
    "                                        set custom jinja chat template file\n";

static const char WORDS[] =
    "A small answer of a few dozen words, about as long as what a person hears back when they say hello to a model; "
    "its text does not matter to anybody on the way.";

struct conn {
    int fd, slot;      /* slot: place in `streams`, -1 when not streaming */
    bool want_write;
    char *in;          /* bytes of the request being read */
    size_t in_len, in_cap;
    char *out;         /* bytes that the socket did not take yet */
    size_t out_len, out_cap;
    long sent, chunks; /* of the stream being written */
    uint64_t gap, due; /* nanoseconds */
    bool usage;
};

static struct conn *conns[MAX_FDS], *streams[MAX_FDS];
static int n_streams, epoll_fd;
static long default_chunks = 16, default_gap_us = 0;
static char bearer[512]; /* "Bearer KEY", empty: no key asked */
static char chat_answer[1024], embedding_answer[4096];

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *must(void *p) {
    if (!p) { fputs("out of memory\n", stderr); exit(1); }
    return p;
}

static void watch(struct conn *c, bool write) {
    struct epoll_event e = {.events = EPOLLIN | (write ? EPOLLOUT : 0u), .data.fd = c->fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
    c->want_write = write;
}

static void end_stream(struct conn *c) {
    if (c->slot < 0) return;
    streams[c->slot] = streams[--n_streams];
    streams[c->slot]->slot = c->slot;
    c->slot = -1;
}

static void drop(struct conn *c) {
    end_stream(c);
    conns[c->fd] = NULL;
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
}

/* Send now what the socket takes and keep the rest. False: the peer is gone. */
static bool put(struct conn *c, const char *data, size_t n) {
    if (!c->out_len) {
        ssize_t w = send(c->fd, data, n, MSG_NOSIGNAL);
        if (w < 0 && errno != EAGAIN) return false;
        if (w > 0) { data += w; n -= (size_t)w; }
    }
    if (!n) return true;
    if (c->out_len + n > c->out_cap) c->out = must(realloc(c->out, c->out_cap = 2 * (c->out_len + n)));
    memcpy(c->out + c->out_len, data, n);
    c->out_len += n;
    if (!c->want_write) watch(c, true);
    return true;
}

static bool flush(struct conn *c) {
    ssize_t w = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
    if (w < 0) return errno == EAGAIN;
    memmove(c->out, c->out + w, c->out_len - (size_t)w);
    c->out_len -= (size_t)w;
    if (!c->out_len) watch(c, false);
    return true;
}

static bool reply(struct conn *c, const char *status, const char *json) {
    char text[6144];
    int n = snprintf(text, sizeof text,
                     "HTTP/1.1 %s\r\nServer: llama.cpp\r\nContent-Type: application/json; charset=utf-8\r\n"
                     "Content-Length: %zu\r\nKeep-Alive: timeout=5, max=100\r\n\r\n%s", status, strlen(json), json);
    return put(c, text, (size_t)n);
}

/* One server-sent event in one HTTP chunk, in one send. */
__attribute__((format(printf, 2, 3))) static bool event(struct conn *c, const char *format, ...) {
    char json[768], text[896];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(json, sizeof json, format, args);
    va_end(args);
    int m = snprintf(text, sizeof text, "%x\r\ndata: %s\n\n\r\n", n + 8, json);
    return put(c, text, (size_t)m);
}

#define CHUNK(choices) \
    "{\"choices\":[" choices "],\"created\":1760000000,\"id\":\"chatcmpl-0123456789abcdefghijklmnopqrstuv\"," \
    "\"model\":\"fake\",\"system_fingerprint\":\"b1-0000000\",\"object\":\"chat.completion.chunk\""

/* Write what is due of a stream. False: the peer is gone. */
static bool step(struct conn *c, uint64_t now) {
    while (c->sent < c->chunks && c->due <= now) {
        if (!event(c, CHUNK("{\"finish_reason\":null,\"index\":0,\"delta\":{\"content\":\"T%020lu\"}}") "}",
                   (unsigned long)now_ns()))
            return false;
        c->sent++;
        c->due += c->gap;
    }
    if (c->sent < c->chunks) return true;
    end_stream(c);
    if (!event(c, CHUNK("{\"finish_reason\":\"stop\",\"index\":0,\"delta\":{}}") "}")) return false;
    if (c->usage && !event(c, CHUNK("") ",\"usage\":{\"completion_tokens\":%ld,\"prompt_tokens\":60,\"total_tokens\":%ld}}",
                           c->chunks, c->chunks + 60))
        return false;
    return event(c, "[DONE]") && put(c, "0\r\n\r\n", 5);
}

/* The value after `"key":` in the body, or NULL. The benchmark's bodies hold no such text elsewhere. */
static const char *value_of(const char *body, size_t n, const char *key) {
    const char *p = memmem(body, n, key, strlen(key));
    if (!p) return NULL;
    p += strlen(key);
    while (*p == ' ' || *p == ':') p++;
    return p;
}

static bool start_stream(struct conn *c, const char *body, size_t n, uint64_t now) {
    static const char head[] =
        "HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\n"
        "Transfer-Encoding: chunked\r\nKeep-Alive: timeout=5, max=100\r\n\r\n";
    const char *chunks = value_of(body, n, "\"fake_chunks\""), *gap = value_of(body, n, "\"fake_gap_us\"");
    c->chunks = chunks ? strtol(chunks, NULL, 10) : default_chunks;
    c->gap = (uint64_t)(gap ? strtol(gap, NULL, 10) : default_gap_us) * 1000u;
    c->usage = value_of(body, n, "\"include_usage\"") != NULL;
    c->sent = 0;
    c->due = now;
    c->slot = n_streams;
    streams[n_streams++] = c;
    return put(c, head, sizeof head - 1) &&
           event(c, CHUNK("{\"finish_reason\":null,\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null}}") "}") &&
           step(c, now);
}

static bool respond(struct conn *c, const char *head, const char *body, size_t n, bool authorized) {
    if (!strncmp(head, "GET /health ", 12)) return reply(c, "200 OK", "{\"status\":\"ok\"}");
    if (!authorized)
        return reply(c, "401 Unauthorized",
                     "{\"error\":{\"message\":\"Invalid API Key\",\"type\":\"authentication_error\",\"code\":401}}");
    if (!strncmp(head, "POST /v1/chat/completions ", 26) || !strncmp(head, "POST /v1/completions ", 21)) {
        const char *stream = value_of(body, n, "\"stream\"");
        if (stream && !strncmp(stream, "true", 4)) return start_stream(c, body, n, now_ns());
        return reply(c, "200 OK", chat_answer);
    }
    if (!strncmp(head, "POST /v1/embeddings ", 20)) return reply(c, "200 OK", embedding_answer);
    if (!strncmp(head, "GET /v1/models ", 15))
        return reply(c, "200 OK", "{\"object\":\"list\",\"data\":[{\"id\":\"fake\",\"object\":\"model\"}]}");
    return reply(c, "404 Not Found", "{\"error\":{\"message\":\"File Not Found\",\"type\":\"not_found_error\",\"code\":404}}");
}

/* Answer every whole request in the buffer, one at a time. False: the connection must be closed. */
static bool serve(struct conn *c) {
    while (c->slot < 0) {
        char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
        if (!end) return c->in_len < 65536;
        size_t head = (size_t)(end + 4 - c->in), body = 0;
        bool authorized = !bearer[0];
        for (char *line = strstr(c->in, "\r\n") + 2; line < end + 2; line = strstr(line, "\r\n") + 2) {
            if (!strncasecmp(line, "content-length:", 15)) body = strtoul(line + 15, NULL, 10);
            else if (!strncasecmp(line, "authorization: ", 15)) {
                size_t k = strlen(bearer);
                authorized = authorized || (!strncmp(line + 15, bearer, k) && line[15 + k] == '\r');
            }
        }
        if (body > MAX_BODY) return false;
        if (head + body + 1 > c->in_cap) c->in = must(realloc(c->in, c->in_cap = head + body + 65536));
        if (c->in_len < head + body) return true;
        if (!respond(c, c->in, c->in + head, body, authorized)) return false;
        c->in_len -= head + body;
        memmove(c->in, c->in + head + body, c->in_len + 1);
    }
    return true;
}

static bool readable(struct conn *c) {
    if (c->in_cap - c->in_len < 4096) c->in = must(realloc(c->in, c->in_cap *= 2));
    ssize_t r = recv(c->fd, c->in + c->in_len, c->in_cap - c->in_len - 1, 0);
    if (r <= 0) return r < 0 && errno == EAGAIN;
    c->in_len += (size_t)r;
    c->in[c->in_len] = 0;
    return serve(c);
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= MAX_FDS) { close(fd); continue; }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* fails on a unix socket, which needs none */
        struct conn *c = must(calloc(1, sizeof *c));
        c->fd = fd;
        c->slot = -1;
        c->in = must(malloc(c->in_cap = 16384));
        conns[fd] = c;
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
    }
}

static int listen_on(const char *host, int port) {
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    bool is_unix = host[0] == '/';
    int one = 1, fd = socket(is_unix ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (is_unix) snprintf(un.sun_path, sizeof un.sun_path, "%s", host);
    else if (inet_pton(AF_INET, host, &in.sin_addr) != 1) { fprintf(stderr, "cannot listen on %s\n", host); exit(1); }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, is_unix ? (void *)&un : (void *)&in, is_unix ? sizeof un : sizeof in) || listen(fd, 4096)) {
        fprintf(stderr, "couldn't bind HTTP server socket, hostname: %s, port: %d\n", host, port);
        exit(1);
    }
    fprintf(stderr, "main: server is listening on %s%s:%d\n", is_unix ? "unix://" : "http://", host, port);
    return fd;
}

static void quit(int signal) { (void)signal; _exit(0); }

static void prepare(void) {
    const char *key = getenv("LLAMA_API_KEY"), *chunks = getenv("FAKE_CHUNKS"), *gap = getenv("FAKE_GAP_US");
    if (key && *key) snprintf(bearer, sizeof bearer, "Bearer %s", key);
    if (chunks) default_chunks = strtol(chunks, NULL, 10);
    if (gap) default_gap_us = strtol(gap, NULL, 10);
    snprintf(chat_answer, sizeof chat_answer,
             "{\"choices\":[{\"finish_reason\":\"stop\",\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\"}}],"
             "\"created\":1760000000,\"model\":\"fake\",\"object\":\"chat.completion\",\"id\":\"chatcmpl-0123456789abcdef\","
             "\"usage\":{\"completion_tokens\":40,\"prompt_tokens\":60,\"total_tokens\":100}}", WORDS);
    size_t n = (size_t)sprintf(embedding_answer, "{\"object\":\"list\",\"model\":\"fake\",\"data\":[{\"object\":\"embedding\",\"index\":0,\"embedding\":[");
    for (int i = 0; i < 128; i++) n += (size_t)sprintf(embedding_answer + n, "%s0.0%03d", i ? "," : "", (i * 37) % 1000);
    sprintf(embedding_answer + n, "]}],\"usage\":{\"prompt_tokens\":6,\"total_tokens\":6}}");
    struct sigaction act = {.sa_handler = quit};
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
}

int main(int argc, char **argv) {
    char host[512] = "127.0.0.1";
    int port = 8080, listeners[MAX_LISTENERS], n_listeners = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) { fputs(HELP, stdout); return 0; }
        if (!strcmp(argv[i], "--version")) { fputs("version: 0.0.0-fake (build 1, commit 0000000)\n", stderr); return 0; }
        if (!strcmp(argv[i], "--host") && i + 1 < argc) snprintf(host, sizeof host, "%s", argv[++i]);
        else if (!strcmp(argv[i], "--port") && i + 1 < argc) port = atoi(argv[++i]);
    }
    prepare();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    for (char *h = strtok(host, ","); h && n_listeners < MAX_LISTENERS; h = strtok(NULL, ",")) {
        struct epoll_event e = {.events = EPOLLIN, .data.fd = listeners[n_listeners++] = listen_on(h, port)};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, e.data.fd, &e);
    }
    for (;;) {
        struct epoll_event events[256];
        struct timespec wait, *timeout = NULL;
        uint64_t now = now_ns(), next = UINT64_MAX;
        for (int i = 0; i < n_streams; i++) /* a full socket wakes us by itself */
            if (streams[i]->out_len < MAX_UNSENT && streams[i]->due < next) next = streams[i]->due;
        if (next != UINT64_MAX) {
            uint64_t ns = next > now ? next - now : 0;
            wait = (struct timespec){.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
            timeout = &wait;
        }
        int n = epoll_pwait2(epoll_fd, events, 256, timeout, NULL);
        for (int k = 0; k < n; k++) {
            int fd = events[k].data.fd;
            struct conn *c = conns[fd];
            if (!c) { accept_all(fd); continue; }
            if ((events[k].events & EPOLLOUT) && !flush(c)) { drop(c); continue; }
            if ((events[k].events & ~(uint32_t)EPOLLOUT) && !readable(c)) drop(c);
        }
        now = now_ns();
        for (int i = n_streams - 1; i >= 0; i--) {
            struct conn *c = streams[i];
            if (c->due <= now && c->out_len < MAX_UNSENT && (!step(c, now) || (c->slot < 0 && !serve(c)))) drop(c);
        }
    }
}
