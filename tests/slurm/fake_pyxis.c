/* A stand-in for the pyxis plugin of Slurm: srun and sbatch accept its options, no container is made.
 * Build: cc -shared -fPIC -Wall -o fake_pyxis.so fake_pyxis.c   (needs libslurm-dev)
 * Each task sees what it was given as FAKE_PYXIS_IMAGE, _NAME, _MOUNTS, _WORKDIR, _ENV, _FLAGS, and the rule for named
 * containers holds per node and job: a name without an image needs an earlier step on that node that made it (pyxis with
 * container_scope=job). State: $FAKE_PYXIS_DIR or /tmp. */
#include <slurm/spank.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

SPANK_PLUGIN(pyxis, 1)

enum { IMAGE, NAME, MOUNTS, WORKDIR, ENV, SAVE, FLAGS, N };
static const char *const env_of[N] = { "FAKE_PYXIS_IMAGE", "FAKE_PYXIS_NAME", "FAKE_PYXIS_MOUNTS",
	"FAKE_PYXIS_WORKDIR", "FAKE_PYXIS_ENV", "FAKE_PYXIS_SAVE", "FAKE_PYXIS_FLAGS" };
static char value[N][4096];

static int take(int val, const char *arg, int remote)
{
	(void)remote;
	if (val >= FLAGS) {
		static const char *const flag[] = { "mount-home", "no-mount-home", "remap-root", "no-remap-root",
			"entrypoint", "no-entrypoint", "writable", "readonly" };
		size_t n = strlen(value[FLAGS]);
		if (strstr(value[FLAGS], flag[val - FLAGS]))
			return 0; /* called again for the remote side */
		snprintf(value[FLAGS] + n, sizeof value[FLAGS] - n, "%s%s", n ? "," : "", flag[val - FLAGS]);
		return 0;
	}
	if (!arg || !*arg) {
		slurm_error("pyxis: empty argument");
		return -1;
	}
	snprintf(value[val], sizeof value[val], "%s", arg);
	return 0;
}

static struct spank_option option[] = {
	{ "container-image", "[USER@][REGISTRY#]IMAGE[:TAG]|PATH", "image (fake)", 1, IMAGE, take },
	{ "container-name", "NAME", "named container (fake)", 1, NAME, take },
	{ "container-mounts", "SRC:DST[:FLAGS],...", "mounts (fake)", 1, MOUNTS, take },
	{ "container-workdir", "PATH", "working directory (fake)", 1, WORKDIR, take },
	{ "container-env", "NAME,...", "environment kept from outside (fake)", 1, ENV, take },
	{ "container-save", "PATH", "save the container (fake)", 1, SAVE, take },
	{ "container-mount-home", NULL, "fake", 0, FLAGS + 0, take },
	{ "no-container-mount-home", NULL, "fake", 0, FLAGS + 1, take },
	{ "container-remap-root", NULL, "fake", 0, FLAGS + 2, take },
	{ "no-container-remap-root", NULL, "fake", 0, FLAGS + 3, take },
	{ "container-entrypoint", NULL, "fake", 0, FLAGS + 4, take },
	{ "no-container-entrypoint", NULL, "fake", 0, FLAGS + 5, take },
	{ "container-writable", NULL, "fake", 0, FLAGS + 6, take },
	{ "container-readonly", NULL, "fake", 0, FLAGS + 7, take },
};

int slurm_spank_init(spank_t sp, int ac, char **av)
{
	(void)ac; (void)av;
	for (size_t i = 0; i < sizeof option / sizeof *option; i++)
		if (spank_option_register(sp, &option[i]) != ESPANK_SUCCESS)
			return -1;
	return 0;
}

int slurm_spank_task_init(spank_t sp, int ac, char **av)
{
	uint32_t job = 0;
	char path[8600], node[256] = "?", dir[4096] = "/tmp";
	(void)ac; (void)av;
	if (!*value[IMAGE] && !*value[NAME])
		return 0;
	spank_get_item(sp, S_JOB_ID, &job);
	spank_getenv(sp, "SLURMD_NODENAME", node, sizeof node);
	spank_getenv(sp, "FAKE_PYXIS_DIR", dir, sizeof dir);
	if (*value[NAME]) {
		snprintf(path, sizeof path, "%s/pyxis_%s_%u_%s", dir, node, job, value[NAME]);
		if (*value[IMAGE]) {
			int fd = open(path, O_CREAT | O_WRONLY, 0600);
			if (fd >= 0)
				close(fd);
		} else if (access(path, F_OK) != 0) {
			slurm_error("pyxis: error: a container with name \"%s\" does not exist, and --container-image is not set", value[NAME]);
			return -1;
		}
	}
	for (int i = 0; i < N; i++)
		if (*value[i])
			spank_setenv(sp, env_of[i], value[i], 1);
	return 0;
}
