/* Sets TCP_NODELAY on every accepted TCP connection, when preloaded into a server.
 *
 * frontend.py gives it to Dynamo's frontend as a variant of its own: without it that server leaves Nagle's algorithm on,
 * and a client that keeps connections alive waits for delayed acknowledgements, which would hide what the server costs.
 * Build: cc -shared -fPIC -O2 -o nodelay.so nodelay.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    static int (*next)(int, struct sockaddr *, socklen_t *, int);
    if (!next)
        next = (int (*)(int, struct sockaddr *, socklen_t *, int))dlsym(RTLD_NEXT, "accept4");
    int accepted = next(fd, address, length, flags);
    int on = 1;
    if (accepted >= 0) /* Fails on sockets that are not TCP, and need not care. */
        setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return accepted;
}
