/* command.c - tensor:cmd's JSON to a struct and back (command.h). */
#include <inttypes.h>
#include <jansson.h>
#include <string.h>
#include "base/context.h"
#include "base/text.h"
#include "redis/command.h"

static int copy_text(const json_t *value, const char *key, char *to, size_t to_bytes)
{
    if (!json_is_string(value))
        return pllm_fail(PLLM_EINVAL, 0, "\"%s\" has to be text, as in \"%s\":\"x\"", key, key);
    size_t bytes = json_string_length(value);
    if (bytes >= to_bytes)
        return pllm_fail(PLLM_EINVAL, 0, "\"%s\" is longer than %zu bytes", key, to_bytes - 1);
    memcpy(to, json_string_value(value), bytes);
    to[bytes] = 0;
    return PLLM_OK;
}

static int read_uint(const json_t *value, const char *key, uint64_t min, uint64_t max,
                     uint64_t *number_out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        (uint64_t)json_integer_value(value) < min || (uint64_t)json_integer_value(value) > max)
        return pllm_fail(PLLM_EINVAL, 0,
                         "\"%s\" has to be a whole number from %" PRIu64 " to %" PRIu64, key, min,
                         max);
    *number_out = (uint64_t)json_integer_value(value);
    return PLLM_OK;
}

static int read_op(const json_t *value, pllm_command *command)
{
    const char *text = json_is_string(value) ? json_string_value(value) : "";
    if (!strcmp(text, "create")) command->op = PLLM_COMMAND_CREATE;
    if (!strcmp(text, "get")) command->op = PLLM_COMMAND_GET;
    if (!strcmp(text, "delete")) command->op = PLLM_COMMAND_DELETE;
    if (command->op) return PLLM_OK;
    char quoted[PLLM_QUOTE_BYTES];
    return pllm_fail(PLLM_EINVAL, 0, "\"op\" has to be \"create\", \"get\" or \"delete\", not %s",
                     pllm_text_quote(text, quoted, sizeof quoted));
}

/* A list of numbers, or the text of one. */
static int read_shape(const json_t *value, pllm_command *command)
{
    if (json_is_string(value))
        return pllm_store_shape_parse(json_string_value(value), json_string_length(value),
                                      &command->rank, command->shape);
    if (!json_is_array(value))
        return pllm_fail(PLLM_EINVAL, 0, "\"shape\" has to be a list of numbers, as in [2,3,4]");
    if (json_array_size(value) > PLLM_STORE_RANK_MAX)
        return pllm_fail(PLLM_EINVAL, 0, "\"shape\" has %zu dimensions: at most %d",
                         json_array_size(value), PLLM_STORE_RANK_MAX);
    command->rank = (uint32_t)json_array_size(value);
    for (uint32_t i = 0; i < command->rank; i++) {
        int status = read_uint(json_array_get(value, i), "shape", 1, PLLM_STORE_BYTES_MAX,
                               &command->shape[i]);
        if (status < 0)
            return pllm_fail(status, 0,
                             "each dimension of \"shape\" has to be a whole number from 1 to "
                             "%" PRIu64,
                             (uint64_t)PLLM_STORE_BYTES_MAX);
    }
    return PLLM_OK;
}

static int read_device(const json_t *value, pllm_command *command)
{
    if (!json_is_integer(value))
        return copy_text(value, "device", command->device, sizeof command->device);
    uint64_t number = 0;
    int status = read_uint(value, "device", 0, 1023, &number);
    if (status == PLLM_OK) snprintf(command->device, sizeof command->device, "%" PRIu64, number);
    return status;
}

static int read_bool(const json_t *value, const char *key, uint32_t *flag_out)
{
    if (!json_is_boolean(value))
        return pllm_fail(PLLM_EINVAL, 0, "\"%s\" has to be true or false", key);
    *flag_out = json_is_true(value);
    return PLLM_OK;
}

static int read_lease(const json_t *value, pllm_command *command)
{
    double seconds = json_is_number(value) ? json_number_value(value) : 0;
    if (!(seconds >= 0.001 && seconds <= PLLM_COMMAND_LEASE_S_MAX))
        return pllm_fail(PLLM_EINVAL, 0, "\"lease_s\" has to be seconds, from 0.001 to %d",
                         PLLM_COMMAND_LEASE_S_MAX);
    command->lease_ns = (uint64_t)(seconds * 1e9);
    return PLLM_OK;
}

/* Numbers of leases are 64 bits wide, and pass as text, since JSON readers make doubles of numbers.
 */
static int read_lease_number(const json_t *value, pllm_command *command)
{
    const char *text = json_is_string(value) ? json_string_value(value) : "";
    uint64_t number = 0;
    for (const char *at = text; *at; at++)
        if (*at < '0' || *at > '9' || __builtin_mul_overflow(number, 10, &number) ||
            __builtin_add_overflow(number, (uint64_t)(*at - '0'), &number)) {
            number = 0;
            break;
        }
    if (!number)
        return pllm_fail(PLLM_EINVAL, 0, "\"lease\" has to be the text that an answer gave");
    command->lease = number;
    return PLLM_OK;
}

static int read_key(const char *key, const json_t *value, pllm_command *command)
{
    uint64_t number = 0;
    int status;
    if (!strcmp(key, "op") || !strcmp(key, "reply")) return PLLM_OK; /* read before the others */
    if (!strcmp(key, "name")) {
        status = copy_text(value, key, command->name, sizeof command->name);
        if (status < 0) return status;
        return pllm_store_name_check(json_string_value(value), json_string_length(value));
    }
    if (!strcmp(key, "dtype")) {
        if (!json_is_string(value))
            return pllm_fail(PLLM_EINVAL, 0, "\"dtype\" has to be text, as in \"f32\"");
        return pllm_store_dtype_parse(json_string_value(value), json_string_length(value),
                                      &command->dtype);
    }
    if (!strcmp(key, "shape")) return read_shape(value, command);
    if (!strcmp(key, "device")) return read_device(value, command);
    if (!strcmp(key, "lease_s")) return read_lease(value, command);
    if (!strcmp(key, "lease")) return read_lease_number(value, command);
    if (!strcmp(key, "pinned")) return read_bool(value, key, &command->pinned);
    if (!strcmp(key, "writable")) return read_bool(value, key, &command->writable);
    if (!strcmp(key, "pid")) {
        status = read_uint(value, key, 1, INT32_MAX, &number);
        if (status == PLLM_OK) command->pid = (uint32_t)number;
        return status;
    }
    if (!strcmp(key, "mode")) {
        status = read_uint(value, key, 0, PLLM_STORE_MODE_MASK, &number);
        return status < 0 ? status : pllm_store_mode_check((uint32_t)number, &command->mode);
    }
    char quoted[PLLM_QUOTE_BYTES];
    return pllm_fail(PLLM_EINVAL, 0, "%s is no key of a command",
                     pllm_text_quote(key, quoted, sizeof quoted));
}

static int check_whole(const pllm_command *command, const json_t *object)
{
    if (!command->name[0]) return pllm_fail(PLLM_EINVAL, 0, "a command needs a \"name\"");
    if (command->pid && command->lease_ns)
        return pllm_fail(PLLM_EINVAL, 0,
                         "a reference lives with \"pid\" or for \"lease_s\", not both");
    /* It means to give a reference back, and would end the tensor for everybody. */
    if (command->op == PLLM_COMMAND_DELETE && command->lease_ns)
        return pllm_fail(
            PLLM_EINVAL, 0,
            "delete takes no \"lease_s\": a reference is given back with the \"lease\" "
            "that its answer told of");
    if (command->op != PLLM_COMMAND_CREATE) return PLLM_OK;
    if (!json_object_get(object, "dtype") || !json_object_get(object, "shape"))
        return pllm_fail(PLLM_EINVAL, 0, "create needs a \"dtype\" and a \"shape\"");
    uint64_t bytes;
    return pllm_store_shape_bytes(command->dtype, command->rank, command->shape, &bytes);
}

/* Answers go nowhere where we keep something. */
static int check_reply(pllm_command *command)
{
    if (strncmp(command->reply, "tensor:", 7) != 0 &&
        strncmp(command->reply, "tensor-store:", 13) != 0)
        return PLLM_OK;
    command->reply[0] = 0;
    return pllm_fail(PLLM_EINVAL, 0, "\"reply\" names a list of your own, not one of the store's");
}

int pllm_command_parse(const char *text, size_t bytes, pllm_command *command_out)
{
    memset(command_out, 0, sizeof *command_out);
    if (bytes > PLLM_COMMAND_BYTES_MAX)
        return pllm_fail(PLLM_ELIMIT, 0, "a command of %zu bytes: at most %d", bytes,
                         PLLM_COMMAND_BYTES_MAX);
    json_error_t error;
    json_t *object = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    if (!object || !json_is_object(object)) {
        char quoted[PLLM_QUOTE_BYTES * 2];
        const char *why =
            object ? "this is another value" : pllm_text_quote(error.text, quoted, sizeof quoted);
        json_decref(object);
        return pllm_fail(PLLM_EINVAL, 0,
                         "a command has to be a JSON object, as in {\"op\":\"get\",\"name\":\"x\"}"
                         " (%s)",
                         why);
    }
    int status = PLLM_OK;
    const json_t *reply = json_object_get(object, "reply"), *op = json_object_get(object, "op");
    if (reply) status = copy_text(reply, "reply", command_out->reply, sizeof command_out->reply);
    if (status == PLLM_OK) status = check_reply(command_out);
    if (status == PLLM_OK) status = read_op(op, command_out);
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        if (status == PLLM_OK) status = read_key(key, value, command_out);
    }
    if (status == PLLM_OK) status = check_whole(command_out, object);
    json_decref(object);
    return status;
}

static const char *op_name(uint32_t op)
{
    static const char *const names[] = {"", "create", "get", "delete"};
    return names[op <= PLLM_COMMAND_DELETE ? op : 0];
}

static json_t *answer_json(const pllm_command *command, const pllm_command_answer *answer)
{
    json_t *object =
        json_pack("{sb ss ss}", "ok", 1, "op", op_name(command->op), "name", command->name);
    const pllm_store_record *r = answer ? answer->record : NULL;
    if (!object || !r) return object;
    char number[24];
    json_t *shape = json_array();
    for (uint32_t i = 0; i < r->rank; i++)
        json_array_append_new(shape, json_integer((json_int_t)r->shape[i]));
    snprintf(number, sizeof number, "%" PRIu64, r->generation);
    json_t *rest = json_pack(
        "{ss so si ss sI ss sI ss ss si}", "dtype", pllm_store_dtype_name(r->dtype), "shape", shape,
        "device", (int)r->device, "uuid", answer->uuid, "bytes", (json_int_t)r->bytes, "ipc_handle",
        answer->ipc_handle, "offset", (json_int_t)answer->offset, "generation", number, "state",
        pllm_store_state_name(r->state), "refcount", (int)r->reference_count);
    if (!rest || json_object_update(object, rest) < 0) {
        json_decref(rest);
        json_decref(object);
        return NULL;
    }
    json_decref(rest);
    if (answer->lease) {
        snprintf(number, sizeof number, "%" PRIu64, answer->lease);
        json_object_set_new(object, "lease", json_string(number));
    }
    return object;
}

size_t pllm_command_answer_text(const pllm_command *command, int status,
                                const pllm_command_answer *answer,
                                char text[PLLM_COMMAND_ANSWER_BYTES])
{
    json_t *object =
        status < 0 ? json_pack("{sb ss ss ss ss}", "ok", 0, "op", op_name(command->op), "name",
                               command->name, "error", pllm_status_name(status), "text",
                               pllm_last_error()->status == status ? pllm_last_error()->text : "")
                   : answer_json(command, answer);
    size_t bytes = object ? json_dumpb(object, text, PLLM_COMMAND_ANSWER_BYTES - 1, JSON_COMPACT)
                          : PLLM_COMMAND_ANSWER_BYTES;
    json_decref(object);
    if (bytes >= PLLM_COMMAND_ANSWER_BYTES) /* no memory: jansson's or ours */
        bytes = (size_t)snprintf(text, PLLM_COMMAND_ANSWER_BYTES,
                                 "{\"ok\":false,\"error\":\"ENOMEM\",\"text\":\"no memory for an "
                                 "answer\"}");
    text[bytes] = 0;
    return bytes;
}
