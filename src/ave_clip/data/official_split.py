"""AVE's official split, for copies of the data set that come without split files and order files.

The authors shuffled the rows of each category and gave the first to training, a tenth to validation and the last tenth
to testing. What has to be kept is the shuffled order: here as one byte a row, its offset within the category's block.
"""

import base64
import hashlib
import itertools
from collections.abc import Sequence

from .annotations import Annotation

# SHA-256 of AVE's 4,143 annotation lines without header, joined by line feeds.
_ANNOTATIONS_SHA256 = "0d45342df6cff353a964acdde0ec1a770ca5ca8f654c67be903d7a37116f668a"
_OFFSETS_BASE85 = (
    "C>}*yT6l$@45Fz<1d}v(N*}CqEI)6KwxxP(O*LO}BB&)Thqtp*F_uV*F1k;xFH2k<GnGDanNhhW11A_701X9yKz?FsI$4iAV56>NRiKe*N1BivAQ"
    "uU^25Aegv=Mz4suUShf;+K85E7(iS1G$PHx47Auw#vY6MGLiHjG$=hP8n`XR;wdbwYLlm{3fY2nS}Hi+PEsI4dx8o^D}q0-T6^Bo%|JNnMmqDhgD"
    "c8*QdUUXoU8ng~saEK*2ddLUvqJB%(KA{0s`e3DU}Dn>z;Q*$U5L?4-7I*${cLp>`YZal6KpI!zVFqC+NXKgYyuU4faIi#bCd67_LcZh(jkf#q_7"
    "j;-BBvdVS7(h;Aab}GRG@@{HOEF0dh7C-nYYG5`YO9L^n1O>_T7RJqX)lfyseWvnDFuS4Wj>WzTZdI)dsk>rat8@BClVQ(M+6!j14WlOLT>@89IZ"
    "AHlYKv+LX~woYi>tsFdU5zMmt}BJ$q6Jhb<O>SatyooK%;0N^}ZfK?W;lVyKIzpIHTDcvS)<h!c#3p)@ISgHV!lJQ5>*o*EBtOFx)aj}R0$GL|t+"
    "VP=Lvjw}lYA$<{JCkakNn-w#VY+GF_L>*6&SBiY1CTI*7ZKYb2s+p-MMUyWz1fWTzK4l+Kf*FY=E~8uk1A2jkd8Zo~AX7FXotiivO<rkna5+c~Y%"
    "!BZd;tlsv1x!GU5Qq#T%k=vwU&ESpfYb;Q<+j^27R+5bAMT84@xRCwyI~If_H{^MoWl6Jz5>I8v-q#H!x$XR}5>TRW1sYUvQ2z8Kzi_J8q3nqOAm"
    "rkUoB3BpxLZBDV*wk~OKCAul?0Cnz~+m!&LnZ4Q{5CWD+wVE}ZMKw^Y8MH&SZoj+bFv=C|_LL5kn2o?)a7=<_krxz7GOmUAy5~z`S6R@OFhj~tcD"
    "|Tf&c@Z^lfFuZ+Gg%T4u(Y>#KSva44|Z0Vdr@&HN>zn1m$9USHgi-m41b2X1eR)LIa;%52AyFRi);cIk)Mh<9-d5&tr|sB1!jj^QcewmxBzs1o2E"
    "%Ax)*Mba4fE0F0v}DuU;#ZiDaulBZ0OYEgL412TMkikWW{f9TkMNNCTmzB4QwVl_6(xs8A<ZU?p`K3pYffI%@$z3S*!NFioirT$+e4jEyusA3S&y"
    "r$VZ2K7G4GqkLU20#G|xOpQ(rdqsYk6O#$84wr~}log!}F-V>>DKvGGOC~w2FfKKH7ax@#Y<8z|XQ`xZQb1d%EJH_DrfDcwkc5jrpqvqCYhG$A8D"
    "s<}Z**{RJ*9Y-0ep@^V*^TpNuwNx3!hJ#2ay|EQ$&UUBzaAYUpGO42Cfz(4<SaIqB>E43N{iVEfk4vsvT7j1zeblg?}m_cV(e-JZ4lSIAStjj~J^"
    "OVO>6hSqM#$i3x#EjhLJQraA?C5p1eJE<B=CP7FnlLlATtaH#|w4_+C06D24ub8TUEDK@1Wf>~ciN*^be5~E3rRu!l<X<MOOM^%1hIe2$nSFVMW3"
    "Ky#YKZg#ANR}gVQ-)ER282)xm6C%UjC!3tr?6m-1Ai+)KCMzOv1@=92ydA(OJ;6$0V1SCS~v|DJD#5`kf1Rj6lf|TGc;!=h-!R7eI8?zSR`>`HwQ"
    "3GWSgw7SAUauk!dl89$cFu15c};6&xm2TBxFfmz^4?VNh|DK#iDRi?gk0v}cT?28obDFJ^s9Ef{rn9UvulNtSvc0BQ$8nL0;U506F{Z?72zY!W+7"
    "7CBoy0!pMmRJCoMV>q&hH#NC@G;o?ybADh%gnLL)4G1e_r7jdhGBz+pOfv~SZekFyv67q$fplFAf`w%%x>-(&CoCgYselfl8z`!#h^!GR1h}rCBm"
    "r`^3q2oem0o#{6H~W=SQ}OelUX2dB5{63s+VO1K0S~DL4b!hjB*calBr!kOb%w9jyQH;l%kDdJT@#CI)4jkgaa~zibx7*4IL|ecqBj^E*h3mS7B!"
    "_o-?JHrYR?1V-W>UO+uKPpLB^^PF!R|r%9t~aC3ZB2zx3a5;dWmm70hGZmV7tBQa8f6^1QD8K8H1CJa+-FnIt_6G{iDq%=E4kp>@+S`c-GM^q>l9"
    "v6#CB{^+BZeK#2H85e03kelxl8cyuHdO%*jAI~^jgJN#MiEeNVs<k`kVsbrW&?9YM@dgW4TBzsUX=oEe;Os7JSJ(NY=C+?n=2b}FA@||T4i`6h-y"
    "umlzf+4G<`umI}b{UD0zg63?V51H)t243M^4vpLJQGPA7DNa26O$6IOS7OECv>86+Z}E-F-0WHK$0mVRIa9SA;!YafQ05I9{qSVOf+pMHuYXN5Xl"
    "qMaHkb4`#ohiG7uKYdJ84IE@+a(GidKnxQFfnI5wsAeZS4o(QGrxa03tpKVKoENSVVPcGVHAAqDP(&4M2OTtDC`MJJnS^>GAZ0f#5U-YZp^s{lcB"
    "LjCTt{sdqb!jdZZC-mI9dajdxA(KRz*B~SOOVOv{@LeF#(7VIfe=g9+X?Lpp_+XS3PxrK`W^Qrb&M@E(Wtgac_fkvM`>SYnUNYGL4HWeP%LQcPSN"
    "XKvGObK?j3fATdNAUSD8mM;df2Zw4a@g=86X2`5TBR(3Edaui5vST6()ei0!&D1a6K8+;dgEmJfkS2{}qhz*BPY!h`0KOJ#gVm(7Me|ZIhE)p06H"
    "&rW%C2(nhA~;QWTVZ8dR1X0NXg*FJZbEtxP)UXyHbo{m3~hupV^0w#Ts9yV1z$}eMF&bNJrV{iBn=iP9|K+wI1XW2C_YgMQeYb~PXJ>KSv(yR0VM"
    ")2En-$QP+KZfDI7Z<WK>m7GZ{BE6dF1T7(_=xMnFLoNHApx1TIW6KT8WENmn8eLtQyoEdU7{NCFKIE*?G$2v!;_H&a<p7z9B~MO989HDD7JLR3lv"
    "CI&PqFF+$9Qej>lB_vuzNmyJc5=%NTGg}rt6gVG73_~#-A_`(q4l7L;KL-ISHV;uJ1xGv)S2;UhGF=&ErwV+tfQGAFL1J_Xb$GY3FdRFi7CjUrU#"
    "u#oXrCLfJfLb1jkE)jO-6+^qnIV47(#t)Csc`Ynl4ff8KIUFRR?3Jeu5|rT?7ywmyU=6j|fFj5^-=HH(*O)W~GsOL%2w>Kp_DikXSK+i!UjZcNIz"
    "if3+G`gq=2Lwg!rJEV*-9TR*8HZY??_gE<YHL}@ZvYpt&fs%=c0Aa8rFQI$uYWQ<8y5tC1OG)_JyGdLHAD+OMeQ-YQaNvn$serYwF0C7uYl7Uw;8"
    "CIYMm1KhmMUf*pL}LM519B~FLVFmRPg+wVe~xAcFe*5wP9;2yj}W6To~axgZmlbbu4s@=J`{CdA*EhatPfa(5_*bRJp=`pL!BrZMmtDSVis#khb|"
    "_CqzN7uubEJkGbe@$VRQ~bHlL<UKYe&KZ7hIWKzWI3U=dw9p*M3AZ<}{~M<6k(s40yfQE-!X9Rg>VRTT`PB!Fx-BSCeDosoWlZWw!3f=7=&85UI)"
    "5+o;2F*1ij3p-Fm0fv}yH-nil3Se!EVI3YkGn<7-c8pYKT8%>#C{27{6Gm@qW{EFdns5vdic(2HB_<D^a{vifbSWYPWe%SqmtH!M8V!^ij*=WvVm"
    "UM`V`*}P2Wn&=eM=x%7nVJLc|Ukulbkh52rW2UE-HGJ1xzeOcW6^i0ucrSS%hDsl2CpSVVGbkf*qGE4@Ik3AQVEgd3HT6M3l9(G?O-M3mQfPbbtg"
    "NTS-=@Wp{{fEj101nT8UfbDtunUQ=Q)dl|1sU2?EeD`o`~kDh@sS8*s7s8u_$nm9;LQD+gI2bE2vT#XJVj5ip6aC)4MwgEmPmW7H5Kqdg9Iu#sjg"
    "Q{ymAwPX%n-{LBWT07mBxz_)cmjzGLuyP^G6;1li#Z#uvI>W#kS{zRZ%RugtXc*$GaOn(Ed(zl8y;0aAy*wWNkuSGIZhucP#6MFTVF!~5<6iKJQG"
    "a{NIz5tBU~;I17kE7I#~`=STZpt3pXMt5mE&p2wp-d05~>16iOLKO9@OBU0@|ERu&CnEGIre3<nxU2SO4AEIv{+F+%|#3>h30PeB_bB?tf@5I0K$"
    "O&SI#Gf7A?B1aQOPD~9EJ1Pk|Iu#C4MK(YRC<PA!3otc3Eh{fXDI-4^7CaXnAtoL;E=o`$KRq7}H8C9v5ECp8I3x@<GcXnx1UEzm0VgsTE<*r1D;"
    "^+1C=xs)CLBQn8v+>$KpG`46b}apIS4HwDisAOJ~R<KLyHGGo>mc!XM1EACP^=A9V%rG9*J55cmiLCJyc<Ad=r){4`K#Hg<C~~7lb%hER_ubc5^?"
    "SnO$%~03m3KcTbX^J76#xX<0}pK2sSjj|EMWTtF2ZjBk2ICl)DHkrI#}fo6XsluRxZP9q>tQ8F<~5ClhFST|BM3N~s%nwtrNfE#smjx{2FhCG;K3"
    "~g~UatM8hB?~!joR@h^4lOe%3I-!05-%7w1UEDm5E=|0Ix-0z8521*8y5ip0t*Nr4=fEkF*p<^Cn*&$B?B%b5eFU|D=HxcB^(6@4G$;=Aqor&HV_"
    "msBqk#;02V$85+4y8I}-vk0~$IWCl?|s4mAikJuNIQ83Zyk9Uw0$6#*(d7&$*TG*B^0R|ZlxM1NvntRV}YNnvm`Q?Yk>BAO+gEH4^*6|JF;kvVZc"
    "L4!?LX`HK30;wEGl0GDmR-31wv!X*X6ox%?2v1r-UV<$j16`$VFqxB|I(8jgPN)|I2@`0SDG_gp7&oeI8wH~o7G(^K4t--xii8kFJX^0v3XMB_hc"
    "gc-AeB^gYDR2(CT6l<i<A-#aw95!b7zRKLavX2D`Xy)0Vk%IO9!NQE?H}UI8^|JSsFS65e+3wMoSV=LQM!4FfSZIH(DkcWIqJ~2LeYfJXdT|YG4d"
    "dPAX_fK4S_>X-{S}3uRqg4_*W;Cp#ozLt+&v2_Pa^H9a;{YcV4bGA$TY02UJ+6gevf8$dWHNm~w7A0A(4Rzx8)MQ==sCvjFylLRXzBuO+vPHIRJT"
    "V`!PhL3hvJ{(wZb7z)R3yC&M6m$thc_I~FAVn&EcO4@#P!~sFYlIIxj(RR(Ge#RgToDL(L0>JHQH5-QjeIycH+_FfkT5R+mjyc^Qf>eSlwAi|bqX"
    "1KJ&0+GF_9J;l{I7xWmN)bDLO-kj3z9A5EBk!Qz&DS1DS&jS{_e=9~g2f5LJT+C=y5{h8IB;e>Qs}F<lm9B^y4J84V@?Wj%BiV=`bxb9y*@2OXFK"
    "O<{RC3LrEN1C9Yv8jv9#ZId&AFF<{YJPZqnjh8=1k`XW`X;3$h7+w!=HCj87N{KFPc!wi!EmL)IVrGR;cAHdKL@9z<LJ4jYER1(wfpSYLi-eYHIs"
    "}zN1#6mHS7!!jnM@x^QbvAG99&i"
)


def official_split(annotations: Sequence[Annotation]) -> dict[str, list[int]] | None:
    """Row numbers of AVE's train, validation and test rows, in the order of its split files.

    Args:
        annotations (`Sequence[Annotation]`): All rows of `Annotations.txt`.

    Returns:
        `dict[str, list[int]]`, or `None` if the rows are not exactly AVE's.
    """
    text = "\n".join("&".join(map(str, annotation.key)) for annotation in annotations)
    if hashlib.sha256(text.encode()).hexdigest() != _ANNOTATIONS_SHA256:
        return None
    offsets = base64.b85decode(_OFFSETS_BASE85)
    splits: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for _, block in itertools.groupby(annotations, key=lambda annotation: annotation.category):
        rows = [annotation.row for annotation in block]
        shuffled = [rows[0] + offset for offset in offsets[rows[0] : rows[-1] + 1]]
        tenth = len(rows) // 10
        splits["train"] += shuffled[: -2 * tenth]
        splits["validation"] += shuffled[-2 * tenth : -tenth]
        splits["test"] += shuffled[-tenth:]
    return splits
