"""What two or more stages, a benchmark or a second modality need. A folder imports only folders
below it, and no module imports a stage; tests/contract/test_house.py holds both.

run <- data, phantom <- formats, audit, learn, compare <- nuclei, ct <- histology, generate <- tools

    run/        how a command behaves: options, faults, files, one writer, resume, progress, seeds
    data/       the two contracts on disk: datasets and results
    phantom/    simulated tissue and chest CT with their truth; `python -m lungkit.phantom`
    formats/    files of scanners to pixels; knows no stain
    audit/      what could make an accuracy a lie: copies, confounding, memorised images
    learn/      what every training shares
    compare/    results to tests, verdicts and the report
    nuclei/     find nuclei, measure them, lay them out
    ct/         chest CT: annotations, lungs, crops; scans to images
    histology/  light, stain, quality and tumour of tissue: originals to tiles
    generate/   what the generative arms share: items, latents, base model, adapters, drawing
    tools/      run once by a maintainer: what is fitted or pretrained and then shipped
"""
