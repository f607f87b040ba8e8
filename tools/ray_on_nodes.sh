#!/bin/bash
# The `ray` that stands on the login path of a cluster's nodes (ray_cluster.yaml puts it there).
#
# `ray down` runs `ray stop` on the head and nothing on the workers. Here `ray stop` on the head, where
# `ray up` has left the description of the cluster and its key, stops the workers as well. Everything
# else is the installed `ray`.
ray=~/harness-env/bin/ray
cluster=~/ray_bootstrap_config.yaml
if [ "$1" != stop ] || [ ! -f "$cluster" ]; then
    exec "$ray" "$@"
fi

# The head first: its autoscaler would start the workers again.
"$ray" "$@"
failed=$?

read_cluster='
import sys, yaml
cluster = yaml.safe_load(open(sys.argv[1]))
for address in cluster["provider"]["worker_ips"]:
    print("%s@%s" % (cluster["auth"]["ssh_user"], address))
'
# As Ray itself connects: no questions, no list of known hosts.
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
        echo "Ray was not stopped on ${stop%=*}; run this there: ~/harness-env/bin/ray stop" >&2
        failed=1
    fi
done
exit $failed
