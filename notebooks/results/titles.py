"""What the results page, and the figures and tables of the lessons, call the rows of records: keys of the
records, in the page's order.
"""

TRAININGS = {
    "full": "all sensors, always",
    "dropout": "modality dropout",
    "all-subsets": "all subsets at once",
}
OBJECTIVES = TRAININGS | {"all-subsets": f"{TRAININGS['all-subsets']} (default)"}
ABLATION = {
    "dropout": "modality dropout (reference)",
    "input-0.03": "+ R_p at the input, λ 0.03",
    "input-0.1": "+ R_p at the input, λ 0.1",
    "input-0.3": "+ R_p at the input, λ 0.3",
    "share": "+ R_p at the input, log shares",
    "variance": "+ R_p at the input, Poincaré form",
    "inverse": "+ R_p at the input, Σ 1/I as printed",
    "consistency": "+ R, Eq. 4",
    "unimodal": "+ R_p on own logits, Σ 1/I",
    "gat": "+ Gat et al. as coded",
    "kl-0.005": "+ R_f by KL, λ 0.005",
    "kl-0.02": "+ R_f by KL, λ 0.02",
    "kl-0.1": "+ R_f by KL, λ 0.1",
    "kl-0.5": "+ R_f by KL, λ 0.5",
    "ce": "+ R_f by CE as printed, Σ 1/I",
    "decoder": "+ R_f through the head",
    "paper": "+ R_p at the input, R_f by KL",
    "shared-dropout": "one stem for all (the paper's network)",
    "shared-paper": "one stem, own logits, KL, Σ 1/I",
    "full": "all sensors, always",
    "centred": "all sensors, centred on the camera",
    "cmx": "all sensors, fused as in CMX",
    "singles": "each sensor and all",
    "selection": "selection by agreement (MAGIC-like)",
    "all-subsets": "**all subsets at once**",
    "all-mean": "… averaged, not summed logits",
    "all-w1": "… full set weighted as any other",
    "shared-all": "… one stem for all",
    "all+input": "… + R_p at the input, λ 0.1",
}
WITHOUT_DROPOUT = {
    "full": "all sensors, always (reference)",
    "full+input": "+ R_p at the input, λ 0.1",
    "full+kl": "+ R_f by KL, λ 0.02",
    "full+paper": "+ both (Eq. 9)",
}
PRETRAINED = {
    "dropout": "modality dropout (reference)",
    "input-0.03": "+ R_p at the input, λ 0.03",
    "input-0.1": "+ R_p at the input, λ 0.1",
    "kl-0.02": "+ R_f by KL, λ 0.02",
    "paper": "+ R_p, λ 0.1, and R_f (Eq. 9)",
    "shared-dropout": "one stem for all",
    "full": "all sensors, always",
    "full+input": "… + R_p at the input, λ 0.1",
    "full+paper": "… + R_p and R_f (Eq. 9)",
    "cmx": "all sensors, always, fused as in CMX",
    "all-subsets": "**all subsets at once**",
    "shared-all": "… one stem for all",
}
METHODS = {
    "kmeans": "k-means, side by side",
    "kmeans-whitened": "k-means, 32 directions, side by side",
    "kmeans-image": "k-means, image addition",
    "kmeans-feature": "k-means, feature addition",
    "stego-image": "STEGO, image addition",
    "stego-feature": "STEGO, feature addition",
    "stego-conv": "STEGO, conv fusion",
    "stego-cbam": "STEGO, CBAM",
    "stego-stitch": "STEGO, Stitch adapters",
    "eagle-conv": "in the manner of EAGLE, conv fusion",
    "depthg": "depth guidance",
    "coral": "CORAL",
    "mmd": "MMD",
    "cosine": "cosine distillation",
    "lambda-0": "UniM2, λ 0",
    "unim2-0.3": "UniM2, λ 0.3",
    "unim2": "UniM2, λ 1",
    "cmcs-0.3": "CMCS without CMH, λ 0.3",
    "cmcs-1": "CMCS without CMH, λ 1",
}
SINGLES = {  # "R": colour, "X": the other of two sensors
    "kmeans R": "k-means, colour alone",
    "kmeans X": "k-means, other sensor alone",
    "kmeans-whitened R": "k-means, 32 directions, colour alone",
    "stego R": "STEGO, colour alone",
    "stego X": "STEGO, other sensor alone",
    "eagle R": "in the manner of EAGLE, colour alone",
}
# Ways to use a second sensor, and what has the same steps without it.
WAYS = {
    "lengths-kept": "side by side, lengths of tokens kept",
    "shared-directions": "directions in which the sensors agree (CCA), added",
    "telling-directions": "colour in directions that tell the second sensor's clusters apart",
    "measurements": "colour and a light dose of what the second sensor measures",
    "measurements/first": "… of what the camera measures",
    "measurements/place": "… of the place in the picture",
    "weighed-images": "co-clustering, a weight per image from agreement",
    "consensus": "clusters of clusterings of each and of both",
    "consensus/first": "… of colour's directions 1 to 32 and 33 to 64",
    "merged": "eight times as many clusters, merged by the second sensor",
    "merged/first": "… merged by colour's directions 33 to 64",
    "masked": "masks of both sensors, colour clustered (PriMaPs-like)",
    "masked/first": "… masks of colour's 64 directions",
    "pooled-surfaces": "colour pooled in superpixels of the second sensor",
    "pooled-surfaces/first": "… of colour",
}
FUSIONS = {
    "mean": "mean",
    "agreement": "agreement",
    "oracle": "mean of the sound ones (oracle)",
}
FAILURES = ("clean", "single mild", "single gross", "double mild", "double gross")
