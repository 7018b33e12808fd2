"""Losses and samplers as loops over images, straight from their definitions: oracles of the tests."""

import math


def distance(x, i, j):
    return math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(x[i], x[j], strict=True)) + 1e-8)


def others(y, i):
    """Indices of the images of other classes."""
    return [k for k in range(len(y)) if y[k] != y[i]]


def positives(y, i):
    return [j for j in range(len(y)) if j != i and y[j] == y[i]]


def pairs(y):
    return [(i, j) for i in range(len(y)) for j in positives(y, i)]


def mean(terms):
    return sum(terms) / len(terms) if terms else 0.0


def margin(x, y, triplets, beta_of_class, margin, nu=0.0):
    terms, betas = [], []
    for a, p, n in triplets:
        beta = beta_of_class[y[a]]
        betas.append(beta)
        terms.append(max(0.0, distance(x, a, p) - beta + margin))
        terms.append(max(0.0, beta - distance(x, a, n) + margin))
    count = sum(term > 0 for term in terms)
    return (sum(terms) + nu * sum(betas)) / count if count else 0.0


def triplet_term(gap, margin, soft):
    return math.log(1 + math.exp(gap)) if soft else max(0.0, gap + margin)


def triplet_terms(x, triplets, margin, soft):
    return [triplet_term(distance(x, a, p) - distance(x, a, n), margin, soft) for a, p, n in triplets]


def triplet(x, triplets, margin, soft):
    """Over sampled triplets: the mean of those that cost something."""
    return mean([term for term in triplet_terms(x, triplets, margin, soft) if term > 0])


def semihard_negative(x, y, a, p):
    farther = [k for k in others(y, a) if distance(x, a, k) > distance(x, a, p)]
    if farther:
        return min(farther, key=lambda k: distance(x, a, k))
    return max(others(y, a), key=lambda k: distance(x, a, k))


def triplet_semihard(x, y, margin, soft):
    if len(set(y)) < 2:
        return 0.0
    return mean(triplet_terms(x, [(a, p, semihard_negative(x, y, a, p)) for a, p in pairs(y)], margin, soft))


def triplet_all(x, y, margin, soft):
    return mean(triplet_terms(x, [(a, p, n) for a, p in pairs(y) for n in others(y, a)], margin, soft))


def npairs(x, y, alpha):
    rows = []
    for i in range(len(y)):
        similarity = {
            j: alpha * sum(float(a * b) for a, b in zip(x[i], x[j], strict=True)) for j in range(len(y)) if j != i
        }
        if positives(y, i):
            log_sum = math.log(sum(math.exp(s) for s in similarity.values()))
            rows.append(mean([log_sum - similarity[j] for j in positives(y, i)]))
    return mean(rows)


def negatives_an_anchor(y):
    """Mean number of positives, rounded, but not to 0 while there are any."""
    average = mean([len(positives(y, i)) for i in range(len(y))])
    return max(1, round(average)) if average else 0


def closest_beyond(x, y, i, count, cutoff):
    """The closest negatives beyond the cutoff; then the farthest within it."""
    beyond = sorted((k for k in others(y, i) if distance(x, i, k) > cutoff), key=lambda k: distance(x, i, k))
    within = sorted((k for k in others(y, i) if distance(x, i, k) <= cutoff), key=lambda k: -distance(x, i, k))
    return (beyond + within)[:count]


def kantorov(x, y):
    terms = [max(0.0, 0.2 + (distance(x, i, j) - 1.2)) for i, j in pairs(y)]
    for i in range(len(y)):
        for k in closest_beyond(x, y, i, negatives_an_anchor(y), 0.5):
            terms.append(max(0.0, 0.2 - (distance(x, i, k) - 1.2)))
    return mean([term for term in terms if term > 0])


def overlap(masks):
    rectified = [[max(0.0, float(entry)) for entry in mask] for mask in masks]
    cosines = []
    for i, a in enumerate(rectified):
        for j, b in enumerate(rectified):
            norms = math.sqrt(sum(u * u for u in a)) * math.sqrt(sum(v * v for v in b))
            if i != j:
                cosines.append(sum(u * v for u, v in zip(a, b, strict=True)) / norms if norms else 0.0)
    return mean(cosines)


def log_weights(distances, y, dim, cutoff, nonzero_loss_cutoff):
    """A row an anchor: None in its class, "useless" where no loss, else log-weight less the row's best."""
    rows = []
    for i, row in enumerate(distances):
        useful = {}
        for k, d in enumerate(row):
            if y[k] != y[i] and d < nonzero_loss_cutoff:
                c = max(d, cutoff)
                useful[k] = (2 - dim) * math.log(c) - (dim - 3) / 2 * math.log(max(1 - c * c / 4, 1e-8))
        best = max(useful.values(), default=0.0)
        named = {k: None if y[k] == y[i] else "useless" for k in range(len(y))}
        rows.append({**named, **{k: w - best for k, w in useful.items()}})
    return rows


def triplets_an_anchor(name, y):
    """distanceweighted: the mean number of positives, rounded; easypeasy: rounded down, and no more than there are."""
    counts = []
    for a in range(len(y)):
        own = len(positives(y, a))
        average = sum(len(positives(y, i)) for i in range(len(y))) / len(y)
        down = min(max(1, math.floor(average)), own)
        mean_of_all = negatives_an_anchor(y) if name == "distanceweighted" else down
        counts.append(mean_of_all if own else 0)
    return counts if len(set(y)) > 1 else [0] * len(y)


def easypeasy(x, y, cutoff, chosen_positives):
    """`chosen_positives`: for each anchor those that were drawn, in their order."""
    triplets = []
    for a, count in enumerate(triplets_an_anchor("easypeasy", y)):
        negatives = closest_beyond(x, y, a, count, cutoff)
        for turn in range(count):
            triplets.append((a, chosen_positives[a][turn], negatives[turn % len(negatives)]))
    return triplets


def one_each(name, x, y, chosen_positive):
    """`chosen_positive`: for the random positives, which one was drawn for each anchor."""
    triplets = []
    for a in range(len(y)):
        if not positives(y, a) or not others(y, a):
            continue
        near = sorted(positives(y, a), key=lambda j: distance(x, a, j))
        p = {"H": near[-1], "E": near[0], "R": chosen_positive.get(a)}[name[0]]
        hard = min(others(y, a), key=lambda k: distance(x, a, k))
        triplets.append((a, p, semihard_negative(x, y, a, p) if name.endswith("SHN") else hard))
    return triplets
