/* wire.h - what a client and the daemon say to each other: messages, to bytes and back.
 *
 * AF_UNIX, SOCK_SEQPACKET: one message a packet, at most 64 KiB, never half of one. All numbers are
 * little-endian, wherever the two run.
 *
 *     0   magic      u32  "PLS1"
 *     4   version    u16  1
 *     6   op         u16  an answer has PLLM_WIRE_ANSWER set
 *     8   request    u32  the client's number, repeated in the answer. 0: no answer is wanted
 *     12  status     i32  of an answer: PLLM_OK, or a negative code and the body is its sentence
 *     16  body       u32  bytes that follow; the packet is exactly this long
 *     20  fds        u32  descriptors that come with the packet
 *     24  body
 *
 * pllm_wire_decode checks everything that can be checked without knowing tensors: lengths, ranges,
 * enumerations, that nothing is left over. Texts of a decoded message point into the packet.
 * Encoding what was decoded gives the same bytes (the fuzz target holds it to that).
 *
 * A connection begins with HELLO; nothing else is answered before. Requests may be pipelined; they
 * are answered in order. Events come in between, with request 0.
 *
 *     op        asks                              answer                        descriptors
 *     HELLO     protocol, pid, device uuid        epoch, board, device list     the board's
 *     CREATE    spec, name                        info, layout                  pieces, writable
 *     OPEN      writable, generation kept, name   info, layout                  pieces, unless kept
 *     REDEEM    the same with a token for a name  info, layout                  the same
 *     CLOSE     slot, generation, writable        -                             -
 *     UNMAPPED  slot, generation                  -                             -
 *     SIGNAL    slot, generation, value           -                             -
 *     DELETE    name                              -
 *     RENAME    name, new name                    -
 *     SEAL      name                              -
 *     PIN       name, on                          -
 *     STAT      name                              info
 *     LIST      prefix, cursor                    infos, next cursor
 *     WATCH     prefix, kinds                     watch number
 *     UNWATCH   watch number                      -
 *     EVENT     (from the daemon) watch, kind, generation, name, name before
 *     OFFER     offer, name                       info (of the new generation)  to the daemon:
 * pieces PING      -                                 - BYE       - (all is given back in good
 * order: what follows is the end of the connection)
 *
 * Piece i of a tensor is mapped after piece i-1 into one range; a small tensor has one piece,
 * shared, and lies in it at offset. "Kept": the client still has that generation mapped. */
#ifndef PLLM_STORE_WIRE_H
#define PLLM_STORE_WIRE_H

#include "store/registry.h"

enum {
    PLLM_WIRE_MAGIC = 0x31534c50, /* "PLS1" */
    PLLM_WIRE_VERSION = 1,
    PLLM_WIRE_HEADER_BYTES = 24,
    PLLM_WIRE_PACKET_BYTES = 64 << 10, /* at most */
    PLLM_WIRE_FDS_MAX = 253,           /* what Linux passes with one message (SCM_MAX_FD) */
    PLLM_WIRE_PIECES_MAX = 252,
    PLLM_WIRE_DEVICES_MAX = 16,
    PLLM_WIRE_HANDLE_BYTES = 64, /* a legacy IPC handle */
    PLLM_WIRE_TEXT_MAX = 1023,   /* a sentence */
};

typedef enum pllm_wire_op { /* append-only */
                            PLLM_WIRE_HELLO = 1,
                            PLLM_WIRE_CREATE = 2,
                            PLLM_WIRE_OPEN = 3,
                            PLLM_WIRE_REDEEM = 4,
                            PLLM_WIRE_CLOSE = 5,
                            PLLM_WIRE_UNMAPPED = 6,
                            PLLM_WIRE_SIGNAL = 7,
                            PLLM_WIRE_DELETE = 8,
                            PLLM_WIRE_RENAME = 9,
                            PLLM_WIRE_SEAL = 10,
                            PLLM_WIRE_PIN = 11,
                            PLLM_WIRE_STAT = 12,
                            PLLM_WIRE_LIST = 13,
                            PLLM_WIRE_WATCH = 14,
                            PLLM_WIRE_UNWATCH = 15,
                            PLLM_WIRE_EVENT = 16,
                            PLLM_WIRE_OFFER = 17,
                            PLLM_WIRE_PING = 18,
                            PLLM_WIRE_BYE = 19,
                            PLLM_WIRE_OPS,
                            PLLM_WIRE_ANSWER = 0x8000,
} pllm_wire_op;
const char *pllm_wire_op_name(uint32_t op); /* "create"; static storage */

typedef struct pllm_wire_text { /* not ended by a zero */
    const char *data;
    uint32_t bytes;
} pllm_wire_text;

typedef struct pllm_wire_spec {
    uint32_t dtype, rank, mode, kind, device, flags; /* device: an index of HELLO's list */
    uint64_t shape[PLLM_STORE_RANK_MAX];
} pllm_wire_spec;

typedef struct pllm_wire_info { /* a tensor as STAT and LIST show it */
    pllm_wire_spec spec;
    uint32_t slot, state, uid, gid, owner_pid;
    uint32_t reference_count, writer_count, importer_count;
    uint32_t fence_epoch, fence_poisoned;
    uint64_t generation, bytes, owner_start, fence_value;
    int64_t ctime_ns, mtime_ns;
    pllm_wire_text name;
} pllm_wire_info;

typedef struct pllm_wire_layout {
    uint32_t piece_count; /* one descriptor each comes with it. 0: kept, legacy, or STAT */
    uint64_t offset;      /* of the tensor in its first piece, or in its legacy allocation */
    uint32_t legacy;      /* 1: handle is set */
    uint8_t handle[PLLM_WIRE_HANDLE_BYTES];
    uint64_t pieces[PLLM_WIRE_PIECES_MAX]; /* bytes */
} pllm_wire_layout;

typedef struct pllm_wire_message {
    uint32_t op; /* with PLLM_WIRE_ANSWER for answers */
    uint32_t request;
    int32_t status;
    uint32_t fd_count;
    pllm_wire_text error; /* status < 0: the sentence, and nothing below counts */
    union {
        struct {
            uint32_t protocol, pid;
            pllm_wire_text uuid; /* of the device the client maps with; empty: the first */
        } hello;
        struct {
            uint64_t epoch, board_bytes;
            uint32_t slot_max, device, device_count; /* device: the one that was asked for */
            pllm_wire_text uuids[PLLM_WIRE_DEVICES_MAX];
        } welcome;
        struct {
            pllm_wire_spec spec;
            pllm_wire_text name;
        } create;
        struct { /* OPEN: name; REDEEM: a token */
            uint32_t writable;
            uint64_t kept_generation; /* 0: none */
            pllm_wire_text name;
        } open;
        struct { /* CLOSE, UNMAPPED, SIGNAL */
            uint32_t slot, writable;
            uint64_t generation, value;
        } handle;
        struct { /* DELETE, RENAME, SEAL, PIN, STAT */
            uint32_t on;
            pllm_wire_text name, name_new;
        } name;
        struct { /* LIST */
            uint32_t cursor;
            pllm_wire_text prefix;
        } list;
        struct {           /* LIST's answer; take infos with pllm_wire_list_next */
            uint32_t next; /* cursor that goes on; 0: that was all */
            uint32_t count;
            pllm_wire_text infos; /* as bytes */
        } listing;
        struct {                   /* WATCH, and its answer; UNWATCH */
            uint32_t watch, kinds; /* kinds: PLLM_EFFECT_EVENTS bits; 0: all */
            pllm_wire_text prefix;
        } watch;
        struct {
            uint32_t watch, kinds; /* 0: lost: events were dropped, look for yourself */
            uint64_t generation;
            pllm_wire_text name, name_before;
        } event;
        struct {
            pllm_registry_offer offer;
            uint32_t piece_count;
            uint64_t offset;
            uint64_t pieces[PLLM_WIRE_PIECES_MAX];
            pllm_wire_text name;
        } offer;
        struct { /* answers of CREATE, OPEN, REDEEM, STAT, OFFER; STAT has an empty layout */
            pllm_wire_info info;
            pllm_wire_layout layout;
        } tensor;
    };
} pllm_wire_message;

/* The packet as a message. Errors: EINVAL, with a sentence; message_out is then undefined. */
int pllm_wire_decode(const void *packet, size_t bytes, pllm_wire_message *message_out);
/* The message as a packet; its size, or EINVAL (what decode would refuse) or ELIMIT (too long). */
int pllm_wire_encode(const pllm_wire_message *message, void *packet, size_t packet_bytes);

/* Adds an info to a listing under construction: listing.infos is a buffer of capacity bytes that
 * grows. 1: taken; 0: no room. */
int pllm_wire_list_add(pllm_wire_message *message, char *buffer, uint32_t capacity,
                       const pllm_wire_info *info);
/* The next info of a decoded listing; *at from 0. 1, or 0 when there are no more. */
int pllm_wire_list_next(const pllm_wire_message *message, uint32_t *at, pllm_wire_info *info_out);
void pllm_wire_info_of(const pllm_store_record *record, pllm_wire_info *info_out);

/* The default path of the socket: $XDG_RUNTIME_DIR/pagedllm/store.sock, else
 * /tmp/pagedllm-UID/store.sock. ELIMIT: longer than a socket's name may be. */
int pllm_wire_default_path(char *path, size_t path_bytes);
/* A connected socket (close on exec). path NULL: the default one, where the daemon must then be
 * this user's or root's. timeout_ms also bounds later sends and receives; 0: none. Errors: EINVAL
 * (path), EIO (nobody listens: native holds errno), EPERM. */
int pllm_wire_connect(const char *path, uint32_t timeout_ms, int *fd_out);
/* Fills the address; EINVAL: too long. */
struct sockaddr_un;
int pllm_wire_address(const char *path, struct sockaddr_un *address_out);
/* Who is at the other end, from the kernel. Errors: EIO. */
int pllm_wire_peer(int fd, pllm_store_peer *peer_out);
/* Start time of a process that lives, in the kernel's ticks; ENOTFOUND (bare): there is none; EIO
 * (bare): it cannot be told, for lack of descriptors or the like. */
int pllm_wire_process_start(uint32_t pid, uint64_t *start_out);
/* 0: the process of that start time has ended. 1: it lives, or that cannot be told. */
int pllm_wire_process_lives(uint32_t pid, uint64_t start);
/* One packet with its descriptors. dont_wait: EBUSY (bare) where the socket is full.
 * Errors: EIO, ETIMEDOUT. */
int pllm_wire_send(int fd, const void *packet, size_t bytes, const int *fds, uint32_t fd_count,
                   int dont_wait);
/* One packet: its bytes in *bytes_out (0: the other side has gone), its descriptors, close on exec,
 * in fds, which are the caller's to close. Errors: EBUSY (bare; dont_wait and nothing there),
 * ELIMIT (packet or descriptors cut: those that came are closed; *bytes_out is not 0 where it was
 * the descriptors alone), EIO, ETIMEDOUT. */
int pllm_wire_receive(int fd, void *packet, size_t packet_bytes, size_t *bytes_out, int *fds,
                      uint32_t fd_max, uint32_t *fd_count_out, int dont_wait);

#endif
