"""What the demo's notes say: conditions, social history and layouts, as templates.

`{field}` stands for an identifier of the patient (`identities.py` draws those), a measurement, or another template.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Condition:
    """One reason for admission. A note draws sentences from each part, so that notes differ and still make sense."""

    complaint: tuple[str, ...]
    history: tuple[str, ...]
    findings: tuple[str, ...]
    treatment: tuple[str, ...]
    follow_up: tuple[str, ...]


CONDITIONS = (
    Condition(
        complaint=(
            "productive cough, fever and shortness of breath for {days} days",
            "worsening breathlessness with rust-coloured sputum and rigors",
        ),
        history=(
            "Symptoms began after a cold and did not improve with a course of oral amoxicillin.",
            "There is a background of mild asthma, treated with an inhaled steroid and a reliever as needed.",
            "Appetite had been poor and fluid intake low since the fever started.",
        ),
        findings=(
            "Coarse crackles were heard at the right base, with a saturation of {saturation} % on room air.",
            "The chest radiograph showed consolidation of the right lower lobe without effusion.",
            "White cells were {white_cells} and the C-reactive protein was {protein}.",
        ),
        treatment=(
            "Intravenous ceftriaxone and oral azithromycin were given, with oxygen until the second day.",
            "Chest physiotherapy was started early and the fever settled within {days} days.",
            "Antibiotics were switched to oral doxycycline once the temperature had been normal for a day.",
        ),
        follow_up=(
            "A repeat chest radiograph is due in six weeks to confirm that the shadow has cleared.",
            "The pneumococcal vaccine should be offered at the next visit to the practice.",
        ),
    ),
    Condition(
        complaint=(
            "central chest pain radiating to the left arm, with sweating and nausea",
            "tightness across the chest at rest that lasted for forty minutes",
        ),
        history=(
            "Similar but milder discomfort had been noticed on stairs over the past {days} weeks.",
            "Risk factors are hypertension, raised cholesterol and a smoking history of thirty pack-years.",
            "There was no relief from an antacid taken at home.",
        ),
        findings=(
            "The electrocardiogram showed ST depression in the lateral leads, and troponin rose to {protein}.",
            "Blood pressure was {pressure} and pulse {pulse}, regular, with clear lungs and no oedema.",
            "Echocardiography showed mild hypokinesia of the lateral wall with preserved systolic function.",
        ),
        treatment=(
            "Aspirin and ticagrelor were given, and angiography the next morning led to one drug-eluting stent.",
            "Atorvastatin and bisoprolol were started and were well tolerated.",
            "There was no recurrence of pain, and telemetry showed no arrhythmia.",
        ),
        follow_up=(
            "Dual antiplatelet therapy must continue for twelve months without interruption.",
            "Cardiac rehabilitation has been arranged and driving should be avoided for one week.",
        ),
    ),
    Condition(
        complaint=(
            "increasing leg swelling, breathlessness on lying flat and a weight gain of {days} kilograms",
            "waking at night short of breath, with ankles swollen to the knees",
        ),
        history=(
            "Known systolic heart failure had been stable until the diuretic was stopped last month.",
            "Salt intake had been high during a family celebration, and two doses of medication were missed.",
            "Exercise tolerance had fallen to a few steps on the level.",
        ),
        findings=(
            "The jugular venous pressure was raised, with bilateral basal crackles and pitting oedema.",
            "Natriuretic peptide was markedly elevated and creatinine was slightly above baseline.",
            "Saturation was {saturation} % on two litres of oxygen, blood pressure {pressure}.",
        ),
        treatment=(
            "Intravenous furosemide produced a good diuresis, and potassium was replaced by mouth.",
            "Ramipril was restarted at a low dose and an aldosterone antagonist was added.",
            "Daily weights fell steadily and oxygen was no longer needed after the third day.",
        ),
        follow_up=(
            "Kidney function and electrolytes should be checked within one week.",
            "Please weigh every morning and report a gain of more than two kilograms in three days.",
        ),
    ),
    Condition(
        complaint=(
            "colicky pain in the right upper abdomen after meals, with vomiting",
            "severe epigastric pain spreading to the right shoulder for {days} days",
        ),
        history=(
            "Gallstones had been seen on an ultrasound scan last year, without complications at the time.",
            "There was no jaundice, dark urine or loss of weight.",
            "Previous operations include an appendicectomy in childhood.",
        ),
        findings=(
            "The abdomen was tender beneath the right costal margin with a positive Murphy sign.",
            "Ultrasound showed a thick-walled gallbladder with several stones and a normal common bile duct.",
            "White cells were {white_cells}, while bilirubin and amylase were normal.",
        ),
        treatment=(
            "After two days of antibiotics a laparoscopic cholecystectomy was performed without complication.",
            "Pain was controlled with paracetamol and a short course of an opioid.",
            "A light diet was tolerated from the evening of the operation.",
        ),
        follow_up=(
            "Wound clips are to be removed by the practice nurse after ten days.",
            "Heavy lifting should be avoided for four weeks, and a routine surgical review is not needed.",
        ),
    ),
    Condition(
        complaint=(
            "sudden weakness of the left arm and slurred speech on waking",
            "a droop of the right side of the face with difficulty in finding words",
        ),
        history=(
            "Palpitations had been noticed on and off for some months but were never recorded.",
            "Treatment for high blood pressure had been taken irregularly.",
            "The onset was not witnessed, so that thrombolysis could not be offered.",
        ),
        findings=(
            "Power was reduced to {days} out of five in the affected arm, with brisk reflexes.",
            "Magnetic resonance imaging showed a small infarct in the territory of the middle cerebral artery.",
            "Telemetry captured paroxysmal atrial fibrillation at a rate of {pulse}.",
        ),
        treatment=(
            "Care was given on the stroke unit with early mobilisation, and the swallow was assessed as safe.",
            "Anticoagulation with apixaban was started after repeat imaging had excluded bleeding.",
            "Speech and occupational therapists worked on word finding and on the use of the hand.",
        ),
        follow_up=(
            "The community stroke team will continue therapy at home.",
            "A review in the stroke clinic is planned in six weeks; anticoagulation is lifelong.",
        ),
    ),
    Condition(
        complaint=(
            "excessive thirst, vomiting and drowsiness over {days} days",
            "abdominal pain and rapid breathing with a very high glucose reading at home",
        ),
        history=(
            "Type 1 diabetes has been treated with a basal and bolus regimen since adolescence.",
            "Insulin had been reduced during a stomach upset in the belief that food was needed first.",
            "There had been one similar admission several years ago.",
        ),
        findings=(
            "Venous pH was low with ketones of {days} and a glucose above twenty.",
            "There was marked dehydration with dry mucous membranes and a pulse of {pulse}.",
            "No focus of infection was found on examination or in the urine.",
        ),
        treatment=(
            "Fluids and a fixed-rate insulin infusion were given by protocol, with hourly checks of potassium.",
            "Long-acting insulin was continued throughout and meals were resumed the next day.",
            "The diabetes nurse went through the sick-day rules and the use of ketone strips.",
        ),
        follow_up=(
            "A telephone review with the diabetes team is booked for next week.",
            "Glucose should be tested four times a day until the doses are stable.",
        ),
    ),
    Condition(
        complaint=(
            "a fall on an icy step with pain in the left hip and inability to stand",
            "hip pain and a shortened, rotated leg after tripping over a rug",
        ),
        history=(
            "There had been no dizziness or loss of consciousness before the fall.",
            "Osteoporosis was diagnosed some years ago but treatment had lapsed.",
            "Walking had been independent with a stick before the accident.",
        ),
        findings=(
            "Radiographs confirmed a displaced fracture of the femoral neck.",
            "Sensation and pulses in the limb were intact, and haemoglobin was {white_cells} before surgery.",
            "Cognition was normal on a bedside screening test.",
        ),
        treatment=(
            "A cemented hemiarthroplasty was carried out under spinal anaesthesia within a day.",
            "The physiotherapists began walking with a frame on the first day after the operation.",
            "Mild confusion on the second night resolved with fluids and treatment of constipation.",
        ),
        follow_up=(
            "Prophylaxis against thrombosis is to continue for twenty-eight days.",
            "Calcium, vitamin D and a weekly bisphosphonate have been started; a bone density scan is requested.",
        ),
    ),
    Condition(
        complaint=(
            "fever, loin pain and burning on passing urine for {days} days",
            "shivering attacks and pain in the right flank with cloudy urine",
        ),
        history=(
            "Two urinary infections had been treated in the past year.",
            "Nausea had prevented the antibiotic tablets from being kept down.",
            "There is no history of kidney stones or of diabetes.",
        ),
        findings=(
            "Temperature was {temperature}, with tenderness over the right kidney.",
            "Urine culture grew Escherichia coli sensitive to the antibiotics in use.",
            "Ultrasound showed a slightly swollen kidney without obstruction or abscess.",
        ),
        treatment=(
            "Intravenous gentamicin was given for two days, followed by oral ciprofloxacin.",
            "Fluids were given by drip until drinking was normal again.",
            "Fever and pain had gone by the third day and inflammatory markers were falling.",
        ),
        follow_up=(
            "The antibiotic course is to be completed at home for a total of ten days.",
            "A urine sample should be sent two weeks after treatment.",
        ),
    ),
    Condition(
        complaint=(
            "black stools and light-headedness for {days} days",
            "vomiting of blood after a week of upper abdominal pain",
        ),
        history=(
            "Ibuprofen had been taken several times a day for back pain, without protection of the stomach.",
            "Alcohol intake is low and there is no known liver disease.",
            "There had been no earlier ulcer or bleed.",
        ),
        findings=(
            "Pulse was {pulse} with blood pressure {pressure}, and haemoglobin had fallen by a third.",
            "Endoscopy showed a duodenal ulcer with a visible vessel.",
            "A rapid test for Helicobacter pylori was positive.",
        ),
        treatment=(
            "The vessel was clipped and injected, and two units of red cells were transfused.",
            "A high-dose proton pump inhibitor was infused for three days and then given by mouth.",
            "Eradication treatment with two antibiotics was started before leaving the ward.",
        ),
        follow_up=(
            "Anti-inflammatory painkillers must not be taken again.",
            "A breath test to confirm eradication is due in eight weeks, with a blood count before that.",
        ),
    ),
    Condition(
        complaint=(
            "increasing wheeze and cough with green sputum for {days} days",
            "breathlessness at rest that no longer responded to inhalers",
        ),
        history=(
            "Chronic obstructive pulmonary disease has led to two admissions in the past winter.",
            "Smoking stopped five years ago after forty pack-years.",
            "Home oxygen is not in use, and the flu vaccine was given in the autumn.",
        ),
        findings=(
            "There was widespread expiratory wheeze with use of accessory muscles, and saturation was {saturation} %.",
            "Arterial gases showed mild retention of carbon dioxide that improved with controlled oxygen.",
            "The radiograph showed hyperinflated lungs without consolidation.",
        ),
        treatment=(
            "Nebulised bronchodilators, oral prednisolone and doxycycline were given.",
            "A short period of non-invasive ventilation was needed on the first night.",
            "Inhaler technique was corrected and a combination inhaler was introduced.",
        ),
        follow_up=(
            "Prednisolone stops after five days without tapering.",
            "The respiratory nurse will visit at home within a week and discuss pulmonary rehabilitation.",
        ),
    ),
)

SOCIAL = (
    "{They} works as a {occupation}.",
    "Occupation: {occupation}. There are no known allergies.",
    "At home {they} manages without help; {they} works as a {occupation}.",
    "{They} does not smoke, drinks little and works as a {occupation}.",
)

CLOSING = (
    "{Title} {surname} left the ward in good condition and understood the instructions.",
    "At discharge {Title} {surname} was walking unaided and free of pain.",
    "{patient} was given written advice and a summary of the medication.",
    "We discussed the plan with {patient}, who agrees and had no further questions.",
)

LAYOUTS = (
    """DISCHARGE SUMMARY
Patient: {patient}
MRN: {record}
Date of birth: {birth}
Date of admission: {admitted}
Address: {street}, {city}
Insurance no.: {insurance}
Attending physician: Dr. {doctor}

Reason for admission: {complaint}.
History: {history} {social}
Examination: {findings}
Hospital course: {treatment}
Plan: {follow_up} {closing}
Next of kin: {relative} ({relation})
""",
    """Dear colleague,

Thank you for taking over the care of {patient}, born on {birth}, who was admitted to our ward on {admitted} \
with {complaint}. {history} {social}

On examination {they} looked unwell. {findings} {treatment}

{follow_up} {Their} {relation}, {relative}, lives in {city} and answers {phone} or {email}. \
Please quote our record number {record}.

{closing}

With kind regards,
Dr. {doctor}
Consultant physician
""",
    """WARD ROUND NOTE, record number {record}
Name: {patient} (DOB {birth}), admitted {admitted}
Responsible consultant: Dr. {doctor}

S: A {age}-year-old patient with {complaint}. {history} {social}
O: Temperature {temperature}, pulse {pulse}, blood pressure {pressure}. {findings}
A/P: {treatment} {follow_up}

Contact: {relative} ({relation}), tel. {phone}
Home: {street}, {city}
SSN: {social_security}
{closing}
""",
    """TRANSFER OF CARE
We are sending home {patient}, a {age}-year-old patient who came to us on {admitted} because of {complaint}.

Background. {history} {social}
What we found. {findings}
What we did. {treatment}
What should happen next. {follow_up}

{closing} Our colleague Dr. {doctor} remains available for questions.

For your files: MRN {record}; date of birth {birth}; policy number {insurance}; \
phone {phone}; residence {city}; emergency contact {relative} ({relation}).
""",
)
