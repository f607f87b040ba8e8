#!/bin/bash
# The `ray` command on the login path of a cluster's nodes, installed by ray_cluster.yaml.
#
# `ray down` runs `ray stop` on the head and nothing on the workers. With this script, `ray stop` on the
# head, where `ray up` has stored the configuration and key of the cluster, also stops the workers. All
# other commands are passed to the installed `ray`.
ray=~/harness-env/bin/ray
cluster=~/ray_bootstrap_config.yaml
if [ "$1" != stop ] || [ ! -f "$cluster" ]; then
    exec "$ray" "$@"
fi

# The head is stopped first, because its autoscaler would restart the workers.
"$ray" "$@"
failed=$?

read_cluster='
import sys, yaml
cluster = yaml.safe_load(open(sys.argv[1]))
for address in cluster["provider"]["worker_ips"]:
    print("%s@%s" % (cluster["auth"]["ssh_user"], address))
'
# The same ssh options as Ray uses: no prompts, no known_hosts file.
options=(-i ~/ray_bootstrap_key.pem -o BatchMode=yes -o ConnectTimeout=20 -o IdentitiesOnly=yes -o LogLevel=ERROR
    -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null)
workers=$(~/harness-env/bin/python -c "$read_cluster" "$cluster") || exit
stops=()
for worker in $workers; do
    ssh -n "${options[@]}" "$worker" '~/harness-env/bin/ray stop > /dev/null' &
    stops+=("$worker=$!")
done
for stop in "${stops[@]}"; do
    if wait "${stop#*=}"; then
        echo "Ray is stopped on ${stop%=*}."
    else
        echo "Ray could not be stopped on ${stop%=*}; run on that machine: ~/harness-env/bin/ray stop" >&2
        failed=1
    fi
done
exit $failed
