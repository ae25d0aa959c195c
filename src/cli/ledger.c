/* ledger.c - top and limit: who shares device memory, and changing how much of it they may have. */
#include <pagedllm/ledger.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/context.h"
#include "cli/cli.h"

enum { LIVE_MS = 1000, ONCE_MS = 250, CELL = 12 };

/* The ledger at one moment. */
typedef struct look {
    pllm_ledger_member_info rows[PLLM_LEDGER_MEMBERS_MAX];
    pllm_ledger_totals totals;
    uint64_t when_ns;
    int count;
} look;

static int look_at(pllm_ledger *ledger, look *seen)
{
    seen->totals = (pllm_ledger_totals){.struct_bytes = sizeof seen->totals};
    seen->count = pllm_ledger_list(ledger, seen->rows, PLLM_LEDGER_MEMBERS_MAX, &seen->totals);
    seen->when_ns = pllm_clock_ns();
    return seen->count < 0 ? seen->count : PLLM_OK;
}

/* Bytes a second that a member mapped and gave up between two looks. */
typedef struct rates {
    uint64_t mapped, freed;
} rates;

static rates rates_of(const look *before, const look *now, const pllm_ledger_member_info *row)
{
    double seconds = (double)(now->when_ns - before->when_ns) / 1e9;
    for (int i = 0; i < before->count; i++) {
        const pllm_ledger_member_info *was = &before->rows[i];
        if (was->pid != row->pid || strcmp(was->name, row->name) != 0 || seconds <= 0 ||
            was->charged_total_bytes > row->charged_total_bytes)
            continue;
        return (rates){
            (uint64_t)((double)(row->charged_total_bytes - was->charged_total_bytes) / seconds),
            (uint64_t)((double)(row->credited_total_bytes - was->credited_total_bytes) / seconds)};
    }
    return (rates){0, 0};
}

/* Members that hold most come first. */
static int by_charge(const void *a, const void *b)
{
    const pllm_ledger_member_info *x = a, *y = b;
    if (x->charged_bytes != y->charged_bytes) return x->charged_bytes < y->charged_bytes ? 1 : -1;
    return strcmp(x->name, y->name);
}

/* Three digits that matter and a unit, for columns; "-" for none. */
static const char *cell(uint64_t bytes, char *text)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    double value = (double)bytes;
    int unit = 0;
    while (value >= 999.5 && unit < 5) value /= 1000, unit++;
    if (bytes == PLLM_SIZE_UNLIMITED || bytes == 0)
        snprintf(text, CELL, "-");
    else
        snprintf(text, CELL, unit && value < 99.95 ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return text;
}

/* Of the ledger: there is always something to say. */
static const char *sum(uint64_t bytes, char text[CELL])
{
    if (bytes != 0 && bytes != PLLM_SIZE_UNLIMITED) return cell(bytes, text);
    return bytes ? "unlimited" : "0 B";
}

static void show_text(const char *name, const look *before, const look *now)
{
    char t[10][CELL];
    const pllm_ledger_totals *all = &now->totals;
    printf("ledger %s: %s mapped, %s held of %s; at most %s; %u member%s, %llu refusal%s\n", name,
           sum(all->charged_bytes, t[0]), sum(all->held_bytes, t[1]), sum(all->limit_bytes, t[2]),
           sum(all->peak_bytes, t[3]), all->member_count, all->member_count == 1 ? "" : "s",
           (unsigned long long)all->refused_count, all->refused_count == 1 ? "" : "s");
    printf("%-24s %8s %9s %9s %9s %9s %5s %11s %11s %9s %7s %9s\n", "NAME", "PID", "RESERVED",
           "MAPPED", "MINIMUM", "LIMIT", "PRIO", "MAPPING/s", "FREEING/s", "ASKED", "RECLAIM",
           "GAVE");
    for (int i = 0; i < now->count; i++) {
        const pllm_ledger_member_info *row = &now->rows[i];
        rates rate = rates_of(before, now, row);
        char pid[16] = "-";
        if (row->alive) snprintf(pid, sizeof pid, "%d", row->pid);
        printf("%-24s %8s %9s %9s %9s %9s %5d %11s %11s %9s %7llu %9s\n", row->name, pid,
               cell(row->reserved_bytes, t[0]), cell(row->charged_bytes, t[1]),
               cell(row->minimum_bytes, t[2]), cell(row->limit_bytes, t[3]), row->priority,
               cell(rate.mapped, t[4]), cell(rate.freed, t[5]), cell(row->asked_bytes, t[6]),
               (unsigned long long)row->asked_count, cell(row->given_back_bytes, t[7]));
    }
}

static json_t *limit_json(uint64_t bytes)
{
    return bytes == PLLM_SIZE_UNLIMITED ? json_null() : json_integer((json_int_t)bytes);
}

static json_t *row_json(const pllm_ledger_member_info *row, rates rate)
{
    return json_pack(
        "{s:s, s:o, s:i, s:I, s:I, s:I, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
        "name", row->name, "pid", row->alive ? json_integer(row->pid) : json_null(), "priority",
        row->priority, "reserved_bytes", (json_int_t)row->reserved_bytes, "mapped_bytes",
        (json_int_t)row->charged_bytes, "minimum_bytes", (json_int_t)row->minimum_bytes,
        "limit_bytes", limit_json(row->limit_bytes), "held_by_others_bytes",
        (json_int_t)row->held_by_others_bytes, "mapping_bytes_per_second", (json_int_t)rate.mapped,
        "freeing_bytes_per_second", (json_int_t)rate.freed, "mapped_total_bytes",
        (json_int_t)row->charged_total_bytes, "freed_total_bytes",
        (json_int_t)row->credited_total_bytes, "asked_bytes", (json_int_t)row->asked_bytes,
        "reclaims", (json_int_t)row->asked_count, "given_back_bytes",
        (json_int_t)row->given_back_bytes, "late", (json_int_t)row->late_count, "refusals",
        (json_int_t)row->refused_count);
}

static int show_json(const char *name, const look *before, const look *now)
{
    const pllm_ledger_totals *all = &now->totals;
    json_t *rows = json_array();
    for (int i = 0; i < now->count; i++)
        json_array_append_new(rows, row_json(&now->rows[i], rates_of(before, now, &now->rows[i])));
    return cli_print_json(json_pack(
        "{s:s, s:o, s:I, s:I, s:I, s:I, s:I, s:o}", "ledger", name, "limit_bytes",
        limit_json(all->limit_bytes), "mapped_bytes", (json_int_t)all->charged_bytes, "held_bytes",
        (json_int_t)all->held_bytes, "minimum_bytes", (json_int_t)all->minimum_bytes, "peak_bytes",
        (json_int_t)all->peak_bytes, "refusals", (json_int_t)all->refused_count, "members", rows));
}

static int show(cli_program *cli, const char *name, const look *before, look *now)
{
    qsort(now->rows, (size_t)now->count, sizeof now->rows[0], by_charge);
    if (cli->settings->json) return show_json(name, before, now);
    show_text(name, before, now);
    return PLLM_OK;
}

/* Keys come at once and are not shown, while it lives on a terminal. */
static int keys_begin(struct termios *kept)
{
    if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, kept) != 0) return 0;
    struct termios plain = *kept;
    plain.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    return tcsetattr(STDIN_FILENO, TCSANOW, &plain) == 0;
}

static int key_is_end(void)
{
    char key;
    return read(STDIN_FILENO, &key, 1) <= 0 || key == 'q' || key == 'Q';
}

static int live(cli_program *cli, pllm_ledger *ledger, const char *name, look *looks)
{
    int screen = isatty(STDOUT_FILENO) && !cli->settings->json, which = 0;
    struct termios kept;
    int keys = screen && keys_begin(&kept);
    int status = look_at(ledger, &looks[1]);
    while (status == PLLM_OK) {
        status = look_at(ledger, &looks[which]);
        if (status < 0) break;
        if (screen) printf("\033[H\033[J");
        status = show(cli, name, &looks[!which], &looks[which]);
        if (fflush(stdout) != 0) break;
        int woken = cli_pause(LIVE_MS, keys);
        if (woken == 1 || (woken == 2 && key_is_end())) break;
        which = !which;
    }
    if (keys) tcsetattr(STDIN_FILENO, TCSANOW, &kept);
    (void)cli_interrupt_taken(); /* Ctrl-C is how one ends it */
    return cli_interrupted() ? cli_canceled() : status;
}

static const char *ledger_name(const pllm_settings *settings)
{
    return settings->ledger ? settings->ledger : "default";
}

int command_top(cli_program *cli)
{
    const char *name = ledger_name(cli->settings);
    pllm_ledger *ledger;
    int status = pllm_ledger_open(cli->context, name, 0, &ledger);
    if (status < 0) return status;
    look *looks = calloc(2, sizeof *looks);
    if (!looks) {
        status = pllm_fail_memory("the table", 2 * sizeof *looks);
    } else if (cli->settings->once) {
        status = look_at(ledger, &looks[0]);
        if (status == PLLM_OK && cli_pause(ONCE_MS, 0)) status = cli_canceled();
        if (status == PLLM_OK) status = look_at(ledger, &looks[1]);
        if (status == PLLM_OK) status = show(cli, name, &looks[0], &looks[1]);
    } else {
        status = live(cli, ledger, name, looks);
    }
    free(looks);
    pllm_ledger_close(ledger);
    return status;
}

static int change_total(pllm_ledger *ledger, const pllm_settings *settings, uint64_t bytes)
{
    if (pllm_settings_given(settings, "ledger_minimum") ||
        pllm_settings_given(settings, "ledger_priority"))
        return pllm_fail(PLLM_EINVAL, 0, "the ledger itself has no minimum and no priority");
    return pllm_ledger_set_limit(ledger, bytes);
}

static int change_member(pllm_ledger *ledger, const pllm_settings *settings, uint64_t bytes)
{
    pllm_ledger_change change = {.struct_bytes = sizeof change,
                                 .priority = INT32_MIN,
                                 .minimum_bytes = UINT64_MAX,
                                 .limit_bytes = bytes == PLLM_SIZE_UNLIMITED ? 0 : bytes};
    if (bytes == 0)
        return pllm_fail(PLLM_EINVAL, 0,
                         "a limit of 0 leaves %s nothing: give a size such as 4GB, or unlimited",
                         settings->positionals[0]);
    if (pllm_settings_given(settings, "ledger_minimum"))
        change.minimum_bytes = settings->ledger_minimum;
    if (pllm_settings_given(settings, "ledger_priority"))
        change.priority = (int32_t)settings->ledger_priority;
    return pllm_ledger_set(ledger, settings->positionals[0], &change);
}

int command_limit(cli_program *cli)
{
    const pllm_settings *settings = cli->settings;
    uint64_t bytes;
    int status = pllm_size_parse(settings->positionals[1], &bytes);
    if (status < 0) return status;
    pllm_ledger *ledger;
    status = pllm_ledger_open(cli->context, ledger_name(settings), 0, &ledger);
    if (status < 0) return status;
    status = strcmp(settings->positionals[0], "total") == 0
                 ? change_total(ledger, settings, bytes)
                 : change_member(ledger, settings, bytes);
    pllm_ledger_close(ledger);
    return status;
}
