"""Land cover from EnMAP, 218 of its 224 bands: train on tiles in the west, test on tiles in the east.

Surface reflectance x 10000 near Potsdam, tiles of 32 x 32 pixels of 30 m, most of them unlabelled. The
wavelengths are stated in the files; DOFA generates its patch embedding from them.

Source: our own, on the EnMAP-Box project's test data.
Score: none published, none measured.
Cost: not measured; designed for two CPU cores.

  spectralmoe train --config configs/enmap_landcover.py --config.data.root=PATH/enmap --workdir runs/enmap
"""

from ml_collections import ConfigDict

from data_pipelines.sensors import SENSORS
from spectralmoe_jax.configs import common

WEST = ("128_0", "128_32", "128_96", "160_96", "192_64", "192_96", "64_0", "96_32", "96_96")
EAST = ("128_128", "160_128", "160_160", "192_128", "96_128")  # row and column of the tile in the scene
EMPTY = range(130, 136)  # water-vapour absorption bands, nodata in all tiles


def get_config() -> ConfigDict:
    config = common.small("enmap_landcover")
    config.sensor = "enmap"
    bands = [band.name for band in SENSORS["enmap"].bands]
    config.bands = tuple(name for number, name in enumerate(bands, 1) if number not in EMPTY)
    config.classes.names = ("roof", "pavement", "low vegetation", "tree", "soil", "water")
    config.classes.palette = (
        (206, 72, 62),
        (92, 92, 98),
        (182, 208, 110),
        (38, 115, 62),
        (214, 170, 118),
        (62, 133, 199),
    )

    config.data.kind = "geotiff"
    config.data.root = "data/enmap"
    config.data.image_glob = "images/enmap_potsdam_tile_{domain}.tif"
    config.data.mask_template = "labels/{stem}.tif"
    config.data.label_values = (1, 2, 3, 4, 5, 6)  # as stored, in the order of the classes
    config.data.ignore_values = (0,)
    config.data.source = WEST
    config.data.target = EAST
    config.data.holdout_domains = ("128_96", "96_96")
    config.data.crop = 32

    config.augment.scale = (1.0, 1.0)
    config.augment.max_class_share = 1.0
    config.augment.gain = 0.05
    config.augment.tilt = 0.05

    config.loss.unlabelled = "excluded"  # most pixels have no label

    config.model.pixel_mean = tuple(float(value) for value in PIXEL_MEAN.split())
    config.model.pixel_std = tuple(float(value) for value in PIXEL_STD.split())
    config.model.visual.kind = "dofa"
    config.model.visual.patch_size = 2
    config.model.visual.table_size = 16
    config.model.adapter.scale_init = 0.1

    config.train.steps = 300
    config.train.evaluate_every = 100
    config.train.checkpoint_every = 100

    config.evaluate.window = 32
    config.evaluate.overlap = 16
    return config


# of the tiles in the west, one number for each band that is used
PIXEL_MEAN = """
     458  449  461  481  487  491  511  523  525  539  544  544  545  557  564  563  565  579  581  597
     626  651  671  704  729  753  766  777  786  790  786  776  765  767  761  760  767  771  770  765
     769  768  767  770  763  751  752  749  749  754  788  855  972 1123 1308 1504 1738 1984 2191 2325
    2469 2359 2505 2554 2569 2573 2587 2626 2603 2638 2632 2666 2688 2710 2739 2757 2767 2744 2759 2709
    2673 2570 2811 2957 2869 2689 2547 2556 2568 2600 2616 2809 2762 2843 2689 2942 2821 2764 2774 2816
    2850 2876 2928 2969 3008 3033 3062 3078 3073 3059 3040 2986 3420 3014 2775 2713 2679 2682 2682 2707
    2759 2820 2852 2878 2936 2907 2869 2801 2749 1795 1891 1606 1514 1547 1606 1652 1699 1746 1788 1846
    1885 1923 1972 2001 2017 2037 2056 2048 2049 2036 2009 1986 1958 1931 1929 1934 1910 4064 1807 1289
    1127 1079 1120 1023 1175 1140 1189 1179 1198 1146 1184 1207 1251 1235 1243 1255 1271 1273 1295 1297
    1301 1307 1326 1323 1326 1330 1342 1355 1359 1351 1341 1300 1273 1235 1214 1183 1178 1137 1130 1103
    1078 1094 1078 1041 1040 1058 1056 1048 1062 1050 1048  999 1040  992 1026  919 1011  862
"""
PIXEL_STD = """
     239  243  247  253  259  263  269  270  271  275  276  278  280  283  284  288  290  292  293  296
     297  298  296  297  297  298  300  301  304  309  315  321  328  338  338  342  351  358  361  365
     371  370  372  377  378  380  386  391  394  395  396  383  370  359  367  370  424  521  606  667
     729  677  769  780  788  792  800  819  801  814  819  841  855  863  876  879  888  885  867  844
     839  800  884  981  937  867  804  786  785  797  806  868  851  877  812  864  830  822  831  849
     866  878  900  917  933  944  956  960  956  945  925  881  973  848  777  767  758  756  756  766
     787  811  825  833  850  842  825  794  763  516  528  491  491  494  502  505  508  513  517  525
     532  538  548  555  558  563  567  565  565  560  552  546  539  533  534  539  533 2016  635  484
     480  497  514  463  426  434  493  507  506  474  476  485  499  491  488  489  487  482  484  483
     476  475  473  471  464  464  458  463  463  462  459  450  443  438  433  431  430  422  421  422
     413  422  420  408  407  419  425  422  425  426  430  423  427  409  432  421  444  397
"""
