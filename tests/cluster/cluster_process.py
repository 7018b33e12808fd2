"""A Ray cluster of several nodes on this machine, in a process of its own, which the lines of its input direct.

    python cluster_process.py '{"num_cpus": 0}'      (arguments of the head)

Each line of the input is a list: ["add", arguments of a node] prints the id of the node, ["kill", id] ends it as a crash does,
["remove", id] in good order.
"""

import json
import logging
import sys

from ray.cluster_utils import Cluster

logging.disable(logging.ERROR)
cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **json.loads(sys.argv[1])})
nodes = {cluster.head_node.node_id: cluster.head_node}
print(json.dumps([cluster.address, cluster.head_node.node_id]), flush=True)
for line in sys.stdin:
    word, argument = json.loads(line)
    if word == "add":
        node = cluster.add_node(**argument)
        nodes[node.node_id] = node
        print(json.dumps(node.node_id), flush=True)
    else:
        cluster.remove_node(nodes[argument], allow_graceful=word == "remove")
        print(json.dumps(argument), flush=True)
cluster.shutdown()
